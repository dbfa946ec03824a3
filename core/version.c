/* core/version.c: see version.h. Main thread. */
#include "version.h"

#include <cjson/cJSON.h>
#include <gnu/libc-version.h>
#include <libconfig.h>
#include <lua.h>
#include <microhttpd.h>
#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "config.h"
#include "engine/service.h"

const char *turbod_version(void)
{
    return PACKAGE_VERSION;
}

void turbod_isa_names(char *out, unsigned long cap)
{
    snprintf(out, cap, "scalar");
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        strncat(out, " avx2", cap - strlen(out) - 1);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        strncat(out, " avx512", cap - strlen(out) - 1);
#elif defined(__aarch64__)
    strncat(out, " neon", cap - strlen(out) - 1);
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
        strncat(out, " dotprod", cap - strlen(out) - 1);
#endif
}

void turbod_version_print(FILE *out, const char *program)
{
    char isa[64];
    turbod_isa_names(isa, sizeof isa);
    fprintf(out, "%s %s\n", program, PACKAGE_VERSION);
    fprintf(out, "plugin ABI      %d.%d\n", TURBO_ABI_MAJOR, TURBO_ABI_MINOR);
    fprintf(out, "compiler        %s\n", TURBO_COMPILER);
    fprintf(out, "sanitizers      %s\n", TURBO_SANITIZE);
    fprintf(out, "backends        cpu (%s)\n", isa);
    fprintf(out, "libmicrohttpd   %s\n", MHD_get_version());
    fprintf(out, "libconfig       %d.%d.%d\n", LIBCONFIG_VER_MAJOR, LIBCONFIG_VER_MINOR,
            LIBCONFIG_VER_REVISION);
    fprintf(out, "cJSON           %s\n", cJSON_Version());
    fprintf(out, "Lua             %s\n", LUA_RELEASE + sizeof "Lua");
    fprintf(out, "libc            glibc %s\n", gnu_get_libc_version());
    fprintf(out, "plugins         %s\n", turbod_plugin_path(NULL));
    fprintf(out, "scripts         %s\n", turbod_data_dir());
}
