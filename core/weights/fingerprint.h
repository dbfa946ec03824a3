/* core/weights/fingerprint.h: which model a folder holds, as 32 bytes. Any thread. */
#ifndef TURBOD_FINGERPRINT_H
#define TURBOD_FINGERPRINT_H

#include <stdint.h>

#include "turbo/plugin.h"

/* SHA-256 over the names and sizes of the folder's json, model and safetensors files (or of the one file that
 * folder is), all of the small
 * ones, and of large ones the head and 64 pieces of 4 KiB spread evenly: another fine-tune of the same
 * shape differs in all of them. */
turbo_status turbod_fingerprint(const char *folder, uint8_t out[32], turbo_err *err);
/* The same with the time of each file's last change: also different after an edit in place between these pieces. */
turbo_status turbod_fingerprint_dated(const char *folder, uint8_t out[32], turbo_err *err);

#endif
