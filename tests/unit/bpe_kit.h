/* tests/unit/bpe_kit.h: files of a tokenizer in a folder of its own, for the tests of tok-bpe. */
#ifndef TESTS_BPE_KIT_H
#define TESTS_BPE_KIT_H

#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

typedef struct bpe_kit {
    char folder[64];
    const turbo_tokenizer_vtbl *v;
} bpe_kit;

void bpe_kit_open(bpe_kit *k);
void bpe_kit_close(bpe_kit *k); /* removes the files that bpe_kit_put knows of */
void bpe_kit_put(const bpe_kit *k, const char *name, const void *bytes, size_t n);
void bpe_kit_drop(const bpe_kit *k, const char *name);
/* The whole file SHARED/NAME; free(). Fails the test when it is not there. */
uint8_t *bpe_kit_slurp(const char *shared, const char *name, uint64_t *len);
/* Ids and decoded text of a line, added to two 64-bit FNV-1a hashes as tests/golden does. */
void bpe_kit_hash(const turbo_tokenizer_vtbl *v, const void *tok, const char *p, size_t n,
                  uint64_t *ids, uint64_t *text);
/* A tiktoken file (base64 of a token, blank, rank) as tokenizer.json, as transformers converts it. */
void bpe_kit_tiktoken(const bpe_kit *k, const uint8_t *file, uint64_t len);

#endif
