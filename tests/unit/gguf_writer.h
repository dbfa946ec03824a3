/* tests/unit/gguf_writer.h: writes GGUF files by hand, right or wrong. */
#ifndef TESTS_GGUF_WRITER_H
#define TESTS_GGUF_WRITER_H

#include <stddef.h>
#include <stdint.h>

typedef struct gguf_writer {
    uint8_t *p; /* the file so far */
    size_t n, cap;
    uint8_t *data; /* what follows the descriptions */
    size_t data_n, data_cap;
    uint64_t n_keys, n_tensors;
} gguf_writer;

void gguf_begin(gguf_writer *w);
void gguf_free(gguf_writer *w);
void gguf_u32(gguf_writer *w, uint32_t v); /* bytes, into the header */
void gguf_u64(gguf_writer *w, uint64_t v);
void gguf_bytes(gguf_writer *w, const void *p, size_t n);
void gguf_text(gguf_writer *w, const char *s);

void gguf_key(gguf_writer *w, const char *key, uint32_t type); /* the value follows */
void gguf_key_u32(gguf_writer *w, const char *key, uint32_t v);
void gguf_key_f32(gguf_writer *w, const char *key, float v);
void gguf_key_text(gguf_writer *w, const char *key, const char *v);
/* rows 0: a vector of cols. */
void gguf_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t rows, uint64_t cols,
                 const void *data, size_t bytes);
/* Counts, padding, data; the file is complete then. */
void gguf_end(gguf_writer *w);
void gguf_save(const gguf_writer *w, const char *path);

#endif
