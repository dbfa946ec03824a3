/* plugins/tok-spm/spm.h: a SentencePiece model in memory. Built once, then read-only; any thread.
 *
 * proto.c reads the file, gguf.c reads a GGUF file instead, config.c applies the JSON files beside it, index.c builds the tables,
 * map.c and trie.c find pieces, special.c cuts trusted text at special tokens, normalize.c prepares
 * text, words.c cuts it where no piece does join it, bpe.c and unigram.c segment it, plugin.c is the border. Nothing here knows a model by name.
 */
#ifndef SPM_H
#define SPM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

#define SPM_MAX_PIECE 4096
#define SPM_MAX_RULE 1024 /* bytes of a normaliser's replacement */
#define SPM_MAX_PIECES (1 << 21)
#define SPM_SPACE "\xE2\x96\x81" /* U+2581, stands for a blank */

/* The types of the file, and one for tokens that only a JSON file knows. */
enum { SPM_NORMAL = 1, SPM_UNKNOWN, SPM_CONTROL, SPM_USER, SPM_UNUSED, SPM_BYTE, SPM_ADDED };
enum { SPM_UNIGRAM = 1, SPM_BPE = 2 };

typedef struct spm_piece {
    const char *text; /* in the file's bytes; len counted, may hold NUL */
    const char *out; /* as it decodes: blanks for U+2581 */
    const char *name; /* as people see it: renamed by tokenizer_config.json */
    uint32_t len, out_len, name_len;
    float score;
    uint8_t type;
    uint8_t byte; /* value of a BYTE piece */
    bool blank_first; /* out begins with a blank that was U+2581 */
    bool special; /* hidden from readers, never a result of text that is not trusted */
    bool added; /* a JSON file lists it: trusted text is cut at its name */
    bool renamed; /* its name is not the piece's text, which no text matches any more */
    bool lstrip, rstrip; /* white space before or behind it in trusted text goes */
} spm_piece;

/* Whole strings to ids. */
typedef struct spm_map {
    struct spm_map_slot {
        const char *text;
        uint32_t len;
        int32_t id; /* -1: empty */
    } * slots;
    size_t mask;
    uint8_t lens[SPM_MAX_PIECE + 1]; /* some key has this length */
    uint32_t longest;
} spm_map;

/* Prefixes to ids. Node 0 is the root; an empty trie has no nodes. */
typedef struct spm_node {
    uint32_t child; /* the first of its children, which are sorted by label */
    int32_t id; /* of the key that ends here, -1 */
    uint16_t n_child; /* 0..256 */
    uint8_t label;
} spm_node;

typedef struct spm_trie {
    spm_node *nodes;
} spm_trie;

typedef struct spm_key {
    const char *text;
    uint32_t len;
    int32_t id;
} spm_key;

/* What one call of spm_bpe works with; nothing outlives the call but memory and the words. */
enum { SPM_WORD_TEXT = 32, SPM_WORD_IDS = 9, SPM_WORDS = 16384 };

typedef struct spm_cached {
    uint64_t hash; /* 0: empty */
    uint8_t len, n_ids;
    char text[SPM_WORD_TEXT];
    int32_t ids[SPM_WORD_IDS];
} spm_cached;

typedef struct spm_symbol {
    const char *text;
    uint32_t len; /* 0: merged away */
    int32_t prev, next;
    int32_t id; /* of a known piece, -1 */
    bool frozen;
} spm_symbol;

typedef struct spm_candidate {
    float score;
    int32_t left, right;
    uint32_t len; /* of both when it was made: a stale one no longer fits */
    int32_t id;
} spm_candidate;

typedef struct spm_scratch {
    struct spm_scratch *next;
    spm_cached *words; /* [SPM_WORDS] */
    spm_symbol *sym;
    spm_candidate *heap;
    size_t sym_cap, heap_n, heap_cap;
    uint16_t *left_of; /* [pieces] once an UNUSED piece was formed: bytes of its latest left half */
} spm_scratch;

typedef struct spm_pool spm_pool;

typedef struct spm {
    uint8_t *file; /* tokenizer.model, owned */
    const char *list; /* what holds the pieces, for messages */
    char *forms; /* decoded forms, owned */
    char *arena; /* names of a JSON file, owned */
    spm_piece *pieces;
    int32_t n;
    int32_t model_type, unk, bos, eos;
    bool byte_fallback, suffix_space; /* trainer_spec */
    bool dummy_prefix, squeeze, escape; /* normalizer_spec */
    int32_t each_stretch; /* a dummy prefix behind special tokens too: "legacy" */
    const uint8_t *charsmap;
    size_t charsmap_len, trie_units;
    const char *surface; /* of unknown tokens when decoding */
    uint32_t surface_len;
    int32_t bytes[256]; /* ids of BYTE pieces, -1 none */
    float min_score; /* of normal pieces: that of unknown ones is 10 less */
    int32_t add_bos;
    int32_t n_file; /* pieces of the file; ids from here to n were added by a JSON file */
    spm_map lookup; /* what text may become: normal, user-defined, unused; no special ones */
    spm_map names; /* every token by its name */
    spm_trie words; /* Unigram: what may stand in a segmentation */
    spm_trie user; /* user-defined pieces */
    spm_trie specials; /* names that trusted text is cut at */
    uint64_t *joined; /* bits: two characters stand beside each other in a piece of lookup */
    bool cuts; /* texts may be cut where they do not */
    spm_pool *pool;
} spm;

/* Growing output of an encoder. */
typedef struct spm_ids {
    int32_t *ids;
    uint64_t cap, n; /* n counts on beyond cap */
} spm_ids;

static inline void spm_emit(spm_ids *o, int32_t id)
{
    if (o->n < o->cap && o->ids)
        o->ids[o->n] = id;
    o->n++;
}

turbo_status spm_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

turbo_status spm_map_init(spm_map *m, size_t keys, turbo_err *err);
void spm_map_free(spm_map *m);
bool spm_map_add(spm_map *m, const char *text, uint32_t len, int32_t id); /* false: key exists */
int32_t spm_map_find(const spm_map *m, const char *text, size_t len); /* -1: none */
uint64_t spm_hash(const char *p, size_t n);
turbo_status spm_trie_build(spm_trie *t, spm_key *keys, size_t n, turbo_err *err); /* sorts keys */
void spm_trie_free(spm_trie *t);
/* From *node to its child with this label. */
bool spm_trie_step(const spm_trie *t, uint32_t *node, uint8_t label);
/* Length of the longest key that text begins with, 0 for none. */
uint32_t spm_trie_longest(const spm_trie *t, const char *text, size_t len, int32_t *id);

turbo_status spm_parse(spm *s, const uint8_t *file, uint64_t len, turbo_err *err);
turbo_status spm_configure(spm *s, const turbo_host *h, const char *folder, turbo_err *err);
/* All but the tables of spm_index from a GGUF file; TURBO_ENOENT: folder is none. */
turbo_status spm_gguf(spm *s, const turbo_host *h, const char *folder, turbo_err *err);
/* 50 when folder is a GGUF file with such a tokenizer, else 0. */
int32_t spm_gguf_probe(const turbo_host *h, const char *folder);
/* The byte pieces, of which *found are there; file for messages. */
turbo_status spm_bytes(spm *s, const char *file, int32_t *found, turbo_err *err);
/* Forms that decoding needs; fills name. */
turbo_status spm_forms(spm *s, turbo_err *err);
turbo_status spm_index(spm *s, turbo_err *err);

turbo_status spm_words_init(spm *s, turbo_err *err); /* once lookup is full */
void spm_words_free(spm *s);
/* Bytes up to the first place where text, which is not empty, can be cut. */
size_t spm_word(const spm *s, const char *text, size_t len);
spm_scratch *spm_take(const spm *s); /* NULL: no memory */
void spm_give(const spm *s, spm_scratch *c);

/* Text in which special tokens may be named. */
turbo_status spm_trusted(const spm *s, const char *text, size_t len, bool first, spm_ids *out,
                         turbo_err *err);
/* Ordinary text: normalised, then segmented. */
turbo_status spm_plain(const spm *s, const char *text, size_t len, bool first, spm_ids *out,
                       turbo_err *err);
/* *out is malloc'ed. first: a document begins here. */
turbo_status spm_normalize(const spm *s, const char *text, size_t len, bool first, char **out,
                           size_t *out_len, turbo_err *err);
turbo_status spm_bpe(const spm *s, const char *text, size_t len, spm_ids *out, turbo_err *err);
turbo_status spm_unigram(const spm *s, const char *text, size_t len, spm_ids *out, turbo_err *err);
/* An unknown stretch: bytes, or one unk. prev_unk: the last thing emitted was such an unk. */
bool spm_unknown(const spm *s, const char *text, size_t len, bool prev_unk, spm_ids *out);

static inline size_t spm_char_len(unsigned char c)
{
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

#endif
