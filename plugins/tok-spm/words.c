/* plugins/tok-spm/words.c: where a text can be cut before it is merged, and the memory that encoders share: what
 * the last words became. Any thread; a scratch belongs to one call at a time.
 *
 * A merge joins characters that stand beside each other in some piece. Between two that never do, a text
 * falls apart, and its parts merge as they would in the whole. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "spm.h"

#define JOINED ((size_t)1 << 20) /* bits; two pairs that share one only make words longer */
#define KEEP 65536 /* elements that an idle scratch may hold */

struct spm_pool {
    pthread_mutex_t lock;
    spm_scratch *free;
};

/* The bytes of the character at p. */
static uint32_t code(const char *p, size_t n)
{
    uint32_t c = 0;
    for (size_t i = 0; i < n; i++)
        c = c << 8 | (uint8_t)p[i];
    return c;
}

static uint32_t bit_of(uint32_t left, uint32_t right)
{
    return ((left * 0x9E3779B1u) ^ (right * 0x85EBCA77u + 0x165667B1u)) >> 12;
}

static bool whole_characters(const char *p, size_t len)
{
    for (size_t i = 0; i < len;) {
        size_t n = spm_char_len((unsigned char)p[i]);
        if (((uint8_t)p[i] & 0xC0) == 0x80 || n > len - i)
            return false;
        for (size_t k = 1; k < n; k++)
            if (((uint8_t)p[i + k] & 0xC0) != 0x80)
                return false;
        i += n;
    }
    return true;
}

turbo_status spm_words_init(spm *s, turbo_err *err)
{
    s->pool = calloc(1, sizeof *s->pool);
    if (s->pool && pthread_mutex_init(&s->pool->lock, NULL)) {
        free(s->pool);
        s->pool = NULL;
    }
    s->joined = calloc(JOINED / 64, sizeof *s->joined);
    if (!s->pool || !s->joined)
        return spm_fail(err, TURBO_ENOMEM, "no memory for a tokenizer");
    s->cuts = true;
    for (size_t i = 0; i <= s->lookup.mask; i++) {
        const struct spm_map_slot *e = &s->lookup.slots[i];
        if (e->id < 0 || !e->len)
            continue;
        /* How an UNUSED piece is split depends on what was seen last in all of the text. */
        if (s->pieces[e->id].type == SPM_UNUSED || !whole_characters(e->text, e->len))
            s->cuts = false;
        size_t n = spm_char_len((unsigned char)e->text[0]), k;
        for (size_t at = 0; s->cuts && at + n < e->len; at += n, n = k) {
            k = spm_char_len((unsigned char)e->text[at + n]);
            uint32_t bit = bit_of(code(e->text + at, n), code(e->text + at + n, k));
            s->joined[bit >> 6] |= (uint64_t)1 << (bit & 63);
        }
    }
    return TURBO_OK;
}

size_t spm_word(const spm *s, const char *text, size_t len)
{
    size_t n = spm_char_len((unsigned char)*text), at = n < len ? n : len;
    uint32_t left = code(text, at);
    while (s->cuts && at < len) {
        n = spm_char_len((unsigned char)text[at]);
        n = n < len - at ? n : len - at;
        uint32_t right = code(text + at, n), bit = bit_of(left, right);
        if (!(s->joined[bit >> 6] >> (bit & 63) & 1))
            return at;
        left = right;
        at += n;
    }
    return len;
}

static void free_scratch(spm_scratch *c)
{
    if (!c)
        return;
    free(c->words);
    free(c->sym);
    free(c->heap);
    free(c->left_of);
    free(c);
}

void spm_words_free(spm *s)
{
    free(s->joined);
    if (!s->pool)
        return;
    while (s->pool->free) {
        spm_scratch *c = s->pool->free;
        s->pool->free = c->next;
        free_scratch(c);
    }
    pthread_mutex_destroy(&s->pool->lock);
    free(s->pool);
}

spm_scratch *spm_take(const spm *s)
{
    pthread_mutex_lock(&s->pool->lock);
    spm_scratch *c = s->pool->free;
    if (c)
        s->pool->free = c->next;
    pthread_mutex_unlock(&s->pool->lock);
    if (c)
        return c;
    c = calloc(1, sizeof *c);
    if (c && (c->words = calloc(SPM_WORDS, sizeof *c->words)) != NULL)
        return c;
    free_scratch(c);
    return NULL;
}

void spm_give(const spm *s, spm_scratch *c)
{
    if (c->sym_cap > KEEP) {
        free(c->sym);
        c->sym = NULL;
        c->sym_cap = 0;
    }
    if (c->heap_cap > KEEP) {
        free(c->heap);
        c->heap = NULL;
        c->heap_cap = 0;
    }
    free(c->left_of); /* of one text */
    c->left_of = NULL;
    pthread_mutex_lock(&s->pool->lock);
    c->next = s->pool->free;
    s->pool->free = c;
    pthread_mutex_unlock(&s->pool->lock);
}
