/* plugins/tok-spm/map.c: whole strings to ids, by open addressing. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

uint64_t spm_hash(const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a, then mixed: low bits select the slot */
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)p[i]) * 0x100000001b3u;
    return h ^ (h >> 29);
}

turbo_status spm_map_init(spm_map *m, size_t keys, turbo_err *err)
{
    size_t cap = 16;
    *m = (spm_map){0};
    while (cap < keys * 2)
        cap *= 2;
    m->slots = calloc(cap, sizeof *m->slots);
    if (!m->slots)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %zu pieces", keys);
    for (size_t i = 0; i < cap; i++)
        m->slots[i].id = -1;
    m->mask = cap - 1;
    return TURBO_OK;
}

void spm_map_free(spm_map *m)
{
    free(m->slots);
    *m = (spm_map){0};
}

bool spm_map_add(spm_map *m, const char *text, uint32_t len, int32_t id)
{
    size_t i = spm_hash(text, len) & m->mask;
    for (; m->slots[i].id >= 0; i = (i + 1) & m->mask)
        if (m->slots[i].len == len && !memcmp(m->slots[i].text, text, len))
            return false;
    m->slots[i].text = text;
    m->slots[i].len = len;
    m->slots[i].id = id;
    m->lens[len] = 1;
    m->longest = len > m->longest ? len : m->longest;
    return true;
}

int32_t spm_map_find(const spm_map *m, const char *text, size_t len)
{
    if (len == 0 || len > m->longest || !m->lens[len])
        return -1;
    for (size_t i = spm_hash(text, len) & m->mask; m->slots[i].id >= 0; i = (i + 1) & m->mask)
        if (m->slots[i].len == len && !memcmp(m->slots[i].text, text, len))
            return m->slots[i].id;
    return -1;
}
