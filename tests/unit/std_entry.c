/* tests/unit/std_entry.c: samp-std under another name, beside samp-lua in one program. */
#define turbo_plugin_entry std_entry
#include "../../plugins/samp-std/plugin.c"
