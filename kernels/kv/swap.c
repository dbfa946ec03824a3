/* kernels/kv/swap.c: blocks set aside in host memory, for sequences that lost their place on a device with memory of
 * its own. A slot holds one block. Copies go in the order of everything else that the device was asked for, so nobody
 * waits for them: a block may be given away as soon as its copy was asked for, and a slot too. */
#include <stdlib.h>

#include "internal.h"

turbo_status turbok_kv_swap_new(turbok_kv_pool *p, int32_t n_slots, turbo_err *err)
{
    uint64_t bytes = (uint64_t)n_slots * p->block_bytes;
    if (!p->device->backend)
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "there is nothing to swap to: the KV cache of a CPU is in host memory");
    p->n_slots = n_slots;
    p->slots = calloc((size_t)n_slots, sizeof *p->slots);
    p->swap = turbok_pinned_new(p->device, bytes);
    if (!p->slots || !p->swap) {
        turbok_kv_swap_free(p);
        return turbok_fail(err, TURBO_ENOMEM,
                           "no pinned memory for %llu MiB of swapped KV; lower swap_space",
                           (unsigned long long)(bytes >> 20));
    }
    for (int32_t i = 0; i < n_slots; i++)
        p->slots[i] = n_slots - 1 - i;
    p->n_free_slots = n_slots;
    return TURBO_OK;
}

void turbok_kv_swap_free(turbok_kv_pool *p)
{
    turbok_pinned_free(p->device, p->swap, (uint64_t)p->n_slots * p->block_bytes);
    free(p->slots);
    p->swap = NULL;
    p->slots = NULL;
    p->n_slots = p->n_free_slots = 0;
}

int32_t turbok_kv_swap_total(const turbok_kv_pool *p)
{
    return p->n_slots;
}

int32_t turbok_kv_swap_vacant(const turbok_kv_pool *p)
{
    return p->n_free_slots;
}

static char *slot_at(const turbok_kv_pool *p, int32_t slot)
{
    return p->swap + (size_t)slot * p->block_bytes;
}

int32_t turbok_kv_swap_out(turbok_kv_pool *p, int32_t block)
{
    if (!p->n_free_slots)
        return -1;
    int32_t slot = p->slots[--p->n_free_slots];
    p->device->backend->block_out(p->device, slot_at(p, slot),
                                  p->map + (size_t)block * p->block_bytes, p->block_bytes);
    return slot;
}

void turbok_kv_swap_in(turbok_kv_pool *p, int32_t slot, int32_t block)
{
    p->device->backend->block_in(p->device, p->map + (size_t)block * p->block_bytes,
                                 slot_at(p, slot), p->block_bytes);
}

void turbok_kv_swap_put(turbok_kv_pool *p, int32_t slot)
{
    p->slots[p->n_free_slots++] = slot;
}
