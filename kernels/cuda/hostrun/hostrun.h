/* kernels/cuda/hostrun/hostrun.h: runs the device code of kernels/cuda on the host, for tests.
 *
 * Each .cu file is compiled as C++17 (-x c++, no CUDA headers) and its kernels register themselves by
 * name. A launch runs the blocks one after another (those of a cluster together), each thread as a fiber. What a GPU leaves undefined
 * ends the launch with a text here: a thread that leaves or takes another path at a barrier or a warp
 * operation, a shuffle that names a missing lane, a misaligned vector access. Shared memory is made for
 * each block and filled with 0xff bytes, asynchronous copies land when they are waited for and not
 * before, and the order in which threads run changes from block to block.
 * Threads: one launch at a time in a process; launches from several threads wait for each other. */
#ifndef HOSTRUN_H
#define HOSTRUN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hostrun_kernel {
    const char *name;
    void (*run)(const void *args); /* one thread of the kernel */
    size_t args_bytes; /* size of its one parameter */
    int max_threads; /* of a block: its launch bound */
    const struct hostrun_kernel *next;
} hostrun_kernel;

/* What cuTensorMapEncodeTiled makes here: a matrix of 16-bit numbers, and the box of it that is a tile. */
#define HOSTRUN_MAP 0x7469656c2e6d6170u
typedef struct hostrun_map {
    uint64_t made; /* HOSTRUN_MAP */
    const char *base;
    int64_t columns, rows, pitch; /* pitch: bytes */
    int32_t box_columns, box_rows;
} hostrun_map;

/* NULL: no .cu file that was linked has it. */
const hostrun_kernel *hostrun_find(const char *name);
/* Runs it to the end, blocks of a cluster (so many along x; 0 and 1: none) beside each other. 0, or -1 with one line in err [n] that names kernel, block and thread. */
int hostrun_launch(const hostrun_kernel *k, const unsigned grid[3], const unsigned block[3],
                   unsigned cluster, size_t shared_bytes, const void *args, char *err, size_t n);
/* Threads of a block run in ascending (1), descending (2) or shuffled (3) order; 0, as at the start:
 * the three in turns. */
void hostrun_order(int order);
/* Shared memory that a block may have, dynamic and static together; 227 KiB at the start. */
void hostrun_shared(size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
