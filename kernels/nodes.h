/* kernels/nodes.h: the memory nodes of a machine (NUMA), as far as this process may use their CPUs. */
#ifndef TURBOK_NODES_H
#define TURBOK_NODES_H

#include <sched.h>

#define TURBOK_NODES_MAX 16

typedef struct turbok_nodes {
    int n; /* at least 1 */
    cpu_set_t cpus[TURBOK_NODES_MAX];
} turbok_nodes;

/* Reads ROOT/nodeN/cpulist, where ROOT is TURBOK_NODES_ROOT but for tests. Nodes without a CPU in allowed are left out; with
 * more nodes than TURBOK_NODES_MAX, or when the system tells nothing, all CPUs are one node. */
#define TURBOK_NODES_ROOT "/sys/devices/system/node"
void turbok_nodes_read(const char *root, const cpu_set_t *allowed, turbok_nodes *out);

#endif
