/* core/util/memory.h: how much memory this process may still take. Any thread. */
#ifndef TURBOD_MEMORY_H
#define TURBOD_MEMORY_H

#include <stdint.h>

/* The smaller of MemAvailable and what the cgroup leaves; 0 when neither can be read. */
uint64_t turbod_memory_free(void);

#endif
