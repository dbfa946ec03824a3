/* kernels/cuda/hostrun/bulk.h: the copies and barriers of prims_bulk.cuh on the host. A copy is made when somebody waits for
 * its barrier, and not before; one that nobody waited for when the block ends fails the launch. */
#ifndef HOSTRUN_BULK_H
#define HOSTRUN_BULK_H

typedef hostrun::bulk_barrier bulk_barrier;

static inline void bulk_begin(bulk_barrier *b, int arrivals)
{
    *b = {hostrun::BULK_BEGUN, arrivals, arrivals, 0, 0};
}
static inline void bulk_init(bulk_barrier *b, int arrivals)
{
    bulk_begin(b, arrivals);
}
static inline void bulk_ready()
{
}
static inline void bulk_expect(bulk_barrier *b, int bytes)
{
    hostrun::arrive_bulk(b, bytes);
}
static inline void bulk_arrive(bulk_barrier *b)
{
    hostrun::arrive_bulk(b, 0);
}
static inline void bulk_wait(bulk_barrier *b, int parity)
{
    hostrun::wait_bulk(b, parity);
}
static inline void bulk_copy(void *to, const void *from, int bytes, bulk_barrier *b)
{
    hostrun::aligned(to, 16, "a copy");
    hostrun::aligned(from, 16, "a copy");
    if (bytes <= 0 || bytes % 16)
        hostrun::fail("a copy of %d bytes", bytes);
    hostrun::copy_bulk(to, from, bytes, b);
}
static inline void bulk_copy_tile(void *to, const void *map, int column, int row, bulk_barrier *b)
{
    hostrun::aligned(to, 1024, "a tile");
    hostrun::copy_tile(to, static_cast<const hostrun_map *>(map), column, row, b);
}
static inline void bulk_copy_tile(void *to, const void *map, int column, int row, bulk_barrier *b,
                                  bool)
{
    bulk_copy_tile(to, map, column, row, b);
}
static inline void bulk_expect_map(const void *)
{
}

#endif
