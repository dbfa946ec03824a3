/* core/chat/choose.h: which script renders a model's conversations.
 *
 * The conf file's chat_template, else the template that the model folder holds, known by its SHA-256
 * through the table chat/fingerprints.txt of the data folder, else the name the model plugin gives.
 * A template that the table does not know is never guessed. Any thread. */
#ifndef TURBOD_CHOOSE_H
#define TURBOD_CHOOSE_H

#include <stddef.h>

#include "turbo/plugin.h"

/* path: the script to load. given: chat_template of the conf, "" none. named: turbo_model_info.chat,
 * "" none: it counts only where the folder has no template of its own. data: turbod_data_dir().
 * ENOENT: neither conf, folder nor plugin name a template. EUNSUPPORTED: the folder's template is
 * not known; err names its fingerprint, the file to write and the line to add. EDATA: a file of the
 * folder, or the table, is damaged. */
turbo_status turbod_chat_choose(const char *given, const char *folder, const char *named,
                                const char *data, char *path, size_t cap, turbo_err *err);

/* SHA-256 of the folder's template text, in hexadecimal. ENOENT: the folder has none. */
turbo_status turbod_chat_fingerprint(const char *folder, char hex[65], turbo_err *err);

#endif
