/* core/conf/paths.h: where plugins and scripts lie. engine/service.h declares the same for its users. */
#ifndef TURBOD_PATHS_H
#define TURBOD_PATHS_H

const char *turbod_plugin_path(const char *configured);
const char *turbod_data_dir(void);

#endif
