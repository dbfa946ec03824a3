/* core/util/memory.c: see memory.h. */
#include "util/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uint64_t number_in(const char *path)
{
    FILE *f = fopen(path, "re");
    uint64_t v = UINT64_MAX;
    if (f) {
        if (fscanf(f, "%" SCNu64, &v) != 1) /* "max": no limit */
            v = UINT64_MAX;
        fclose(f);
    }
    return v;
}

/* Pages of files that nobody has used for a while: charged to the group, given back on demand. Reading a
 * model leaves its whole size there. */
static uint64_t file_cache(const char *path)
{
    char line[128];
    uint64_t v = 0;
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "inactive_file %" SCNu64, &v) == 1)
            break;
    if (f)
        fclose(f);
    return v;
}

uint64_t turbod_memory_free(void)
{
    uint64_t avail = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");
    if (f) {
        uint64_t kib;
        while (fgets(line, sizeof line, f))
            if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1) {
                avail = kib * 1024;
                break;
            }
        fclose(f);
    }
    uint64_t max = number_in("/sys/fs/cgroup/memory.max");
    uint64_t used = number_in("/sys/fs/cgroup/memory.current");
    if (max != UINT64_MAX && used != UINT64_MAX) {
        uint64_t cache = file_cache("/sys/fs/cgroup/memory.stat");
        used -= cache < used ? cache : used;
        uint64_t left = max > used ? max - used : 0;
        if (!avail || left < avail)
            avail = left;
    }
    return avail;
}
