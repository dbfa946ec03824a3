/* tests/unit/gguf_writer.c: see gguf_writer.h. */
#include "gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add(uint8_t **p, size_t *n, size_t *cap, const void *from, size_t k)
{
    while (*cap - *n < k) {
        *cap = *cap ? 2 * *cap : 4096;
        *p = realloc(*p, *cap);
        if (!*p)
            abort();
    }
    if (k)
        memcpy(*p + *n, from, k);
    *n += k;
}

void gguf_bytes(gguf_writer *w, const void *p, size_t n)
{
    add(&w->p, &w->n, &w->cap, p, n);
}

void gguf_u32(gguf_writer *w, uint32_t v)
{
    gguf_bytes(w, &v, 4);
}

void gguf_u64(gguf_writer *w, uint64_t v)
{
    gguf_bytes(w, &v, 8);
}

void gguf_text(gguf_writer *w, const char *s)
{
    gguf_u64(w, strlen(s));
    gguf_bytes(w, s, strlen(s));
}

void gguf_begin(gguf_writer *w)
{
    *w = (gguf_writer){0};
    gguf_bytes(w, "GGUF", 4);
    gguf_u32(w, 3);
    gguf_u64(w, 0);
    gguf_u64(w, 0);
}

void gguf_free(gguf_writer *w)
{
    free(w->p);
    free(w->data);
    *w = (gguf_writer){0};
}

void gguf_key(gguf_writer *w, const char *key, uint32_t type)
{
    gguf_text(w, key);
    gguf_u32(w, type);
    w->n_keys++;
}

void gguf_key_u32(gguf_writer *w, const char *key, uint32_t v)
{
    gguf_key(w, key, 4);
    gguf_u32(w, v);
}

void gguf_key_f32(gguf_writer *w, const char *key, float v)
{
    gguf_key(w, key, 6);
    gguf_bytes(w, &v, 4);
}

void gguf_key_text(gguf_writer *w, const char *key, const char *v)
{
    gguf_key(w, key, 8);
    gguf_text(w, v);
}

void gguf_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t rows, uint64_t cols,
                 const void *data, size_t bytes)
{
    static const uint8_t zeros[32];
    gguf_text(w, name);
    gguf_u32(w, rows ? 2 : 1);
    gguf_u64(w, cols);
    if (rows)
        gguf_u64(w, rows);
    gguf_u32(w, type);
    add(&w->data, &w->data_n, &w->data_cap, zeros, (32 - w->data_n % 32) % 32);
    gguf_u64(w, w->data_n);
    add(&w->data, &w->data_n, &w->data_cap, data, bytes);
    w->n_tensors++;
}

void gguf_end(gguf_writer *w)
{
    static const uint8_t zeros[32];
    memcpy(w->p + 8, &w->n_tensors, 8);
    memcpy(w->p + 16, &w->n_keys, 8);
    gguf_bytes(w, zeros, (32 - w->n % 32) % 32);
    gguf_bytes(w, w->data, w->data_n);
}

void gguf_save(const gguf_writer *w, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(w->p, 1, w->n, f) != w->n || fclose(f))
        abort();
}
