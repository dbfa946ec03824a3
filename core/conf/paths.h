/* core/conf/paths.h: where plugins, scripts and the image helper lie. engine/service.h declares the
 * first two for its users. */
#ifndef TURBOD_PATHS_H
#define TURBOD_PATHS_H

const char *turbod_plugin_path(const char *configured);
const char *turbod_data_dir(void);
/* Where turbok-cuda.so is looked for: the build tree or the installed place. */
const char *turbod_backend_path(void);
const char *turbod_image_helper(void);

#endif
