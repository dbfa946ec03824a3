/* plugins/tok-bpe/bpe.h: a BPE tokenizer in memory. Built once, then read-only; any thread.
 *
 * load.c reads tokenizer.json, files.c vocab.json with merges.txt, gguf.c a GGUF file, roles.c tokenizer_config.json and
 * its kin; rules.c reads normalisers and pre-tokenisers, decode.c the decoder; index.c builds the
 * tables. Text goes through special.c (added tokens), normal.c (normalisers), pre.c
 * (pre-tokenisers) and merge.c (the model); regex.c and unicode.c serve them; plugin.c is the
 * border. Nothing here knows a model by name but the table of slow tokenizer classes in files.c.
 *
 * The formats are those of the Hugging Face `tokenizers` library. A byte-level vocabulary is turned
 * back into raw bytes when it is loaded, so that text need not be spelt in its alphabet. */
#ifndef BPE_H
#define BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "json.h"
#include "turbo/plugin.h"

#define BPE_MAX_FILE ((uint64_t)256 << 20)
#define BPE_MAX_ID (1u << 21)
#define BPE_MAX_PIECE 4096 /* bytes of a token */
#define BPE_MAX_ADDED 65536
#define BPE_MAX_RULES 16 /* steps of a normaliser or pre-tokeniser */
#define BPE_MAX_TEXT ((size_t)1 << 30)
#define BPE_METASPACE "\xE2\x96\x81" /* U+2581, stands for a blank */

/* ---- tokens -------------------------------------------------------------------------------- */

enum {
    BPE_TOK_MODEL = 1, /* in the model's vocabulary */
    BPE_TOK_ADDED = 2, /* text is cut at its name */
    BPE_TOK_SPECIAL = 4, /* never a result of text that is not trusted; hidden from readers */
    BPE_TOK_SINGLE = 8, /* single_word: only where no word character is beside it */
    BPE_TOK_LSTRIP = 16,
    BPE_TOK_RSTRIP = 32, /* white space before or behind it goes */
    BPE_TOK_NORMALIZED = 64, /* looked for in normalised text */
    BPE_TOK_BYTE = 128, /* <0x41>, and the decoder turns it into the byte */
};

/* Offsets are into bpe.arena. */
typedef struct bpe_token {
    uint32_t name, name_len; /* as the file spells it; name_len 0: there is no such token */
    uint32_t text, text_len; /* as the model sees it; text_len 0: no text reaches it */
    uint32_t out, out_len; /* as it decodes */
    uint32_t first, first_len; /* as it decodes at the start of a text */
    uint32_t flags; /* BPE_TOK_* */
} bpe_token;

/* Strings to ids, by open addressing. Strings are those of tokens: name or text. */
typedef struct bpe_map {
    int32_t *ids; /* -1: empty */
    uint32_t *hashes;
    size_t mask;
    bool by_text;
} bpe_map;

/* Pairs of ids to rank and result. */
typedef struct bpe_merge {
    uint64_t pair; /* left << 32 | right, UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
} bpe_merge;

/* ---- rules --------------------------------------------------------------------------------- */

typedef struct bpe_regex bpe_regex;

enum {
    BPE_N_NFC,
    BPE_N_NFD,
    BPE_N_NFKC,
    BPE_N_NFKD,
    BPE_N_LOWER,
    BPE_N_REPLACE, /* text, or regex, by with */
    BPE_N_PREPEND, /* with */
    BPE_N_STRIP, /* left, right */
};

enum {
    BPE_P_SPLIT, /* regex, behavior, invert */
    BPE_P_METASPACE, /* with: the replacement; scheme, split */
    BPE_P_PREFIX, /* a blank in front, if there is none: ByteLevel's add_prefix_space */
};
enum { BPE_REMOVED, BPE_ISOLATED, BPE_WITH_PREVIOUS, BPE_WITH_NEXT, BPE_CONTIGUOUS };
enum { BPE_ALWAYS, BPE_FIRST, BPE_NEVER };

typedef struct bpe_rule {
    int32_t kind;
    int32_t behavior, scheme;
    bool invert, split, left, right;
    bpe_regex *regex; /* owned */
    char *text, *with; /* owned */
    size_t text_len, with_len;
} bpe_rule;

typedef struct bpe_rules {
    bpe_rule r[BPE_MAX_RULES];
    int n;
} bpe_rules;

/* ---- added tokens: prefixes to ids --------------------------------------------------------- */

typedef struct bpe_node_at {
    uint32_t child; /* the first of its children, which are sorted by label */
    int32_t id; /* of the name that ends here, -1 */
    uint16_t n_child;
    uint8_t label;
    uint8_t pad;
} bpe_node_at;

typedef struct bpe_trie {
    bpe_node_at *nodes; /* NULL: empty */
    uint8_t starts[256]; /* some name begins with this byte */
} bpe_trie;

/* ---- the whole ----------------------------------------------------------------------------- */

typedef struct bpe_scratch bpe_scratch;
typedef struct bpe_pool bpe_pool;

typedef struct bpe {
    const turbo_host *host;
    char *arena;
    size_t arena_len, arena_cap;
    bpe_token *tokens;
    int32_t n, cap;
    int32_t bos, eos, unk;
    bool add_bos;
    bool byte_level; /* text is bytes in the model */
    bool byte_fallback, fuse_unk, ignore_merges;
    bool cuts; /* a text may be cut where no merge joins two characters */
    char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL: none. Owned */
    size_t prefix_len, suffix_len;
    bpe_rules normal, pre;
    bpe_map names, texts;
    bpe_merge *merges;
    size_t merge_mask;
    uint64_t *joined; /* [BPE_JOINED / 64] bits: merges that join these two characters may exist */
    int32_t *chars; /* char level: [0x10000] ids of the first plane; byte level: [256]; -1 none */
    int32_t bytes[256]; /* ids of byte tokens, -1 */
    bpe_trie added[2][2]; /* [trusted][normalised] */
    bpe_pool *pool;
} bpe;

#define BPE_JOINED (1u << 19)

/* Growing output of an encoder. */
typedef struct bpe_ids {
    int32_t *ids;
    uint64_t cap, n; /* n counts on beyond cap */
} bpe_ids;

static inline void bpe_emit(bpe_ids *o, int32_t id)
{
    if (o->n < o->cap && o->ids)
        o->ids[o->n] = id;
    o->n++;
}

static inline const char *bpe_name(const bpe *b, int32_t id)
{
    return b->arena + b->tokens[id].name;
}

/* A growing text. */
typedef struct bpe_buf {
    char *p;
    size_t len, cap;
} bpe_buf;

bool bpe_buf_add(bpe_buf *b, const char *p, size_t n); /* false: no memory */

/* What one call of encode works with; nothing outlives the call but memory and the word cache. */
enum { BPE_WORD_TEXT = 32, BPE_WORD_IDS = 9, BPE_WORDS = 32768 };

typedef struct bpe_word {
    uint64_t hash; /* 0: empty */
    uint8_t len, n_ids;
    char text[BPE_WORD_TEXT];
    int32_t ids[BPE_WORD_IDS];
} bpe_word;

typedef struct bpe_candidate {
    uint32_t rank;
    int32_t left, right; /* symbols */
    int32_t left_id, right_id; /* when it was made: a stale one no longer fits */
    int32_t id;
} bpe_candidate;

typedef struct bpe_symbol {
    int32_t id; /* -1: merged away */
    int32_t prev, next;
} bpe_symbol;

struct bpe_scratch {
    bpe_scratch *next;
    struct bpe_matcher *matcher; /* of regex.c */
    bpe_buf normal[2]; /* normal.c works from one into the other */
    bpe_buf pre[BPE_MAX_RULES]; /* texts that a pre-tokeniser changed */
    bpe_buf word; /* with prefix or suffix */
    int32_t *cps; /* code points of a normal form */
    size_t cps_cap;
    bpe_symbol *sym;
    size_t sym_cap;
    bpe_candidate *heap;
    size_t heap_n, heap_cap;
    bpe_word *words; /* [BPE_WORDS] */
};

/* ---- errors and text ----------------------------------------------------------------------- */

turbo_status bpe_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
turbo_status bpe_no_memory(turbo_err *err);

bool bpe_utf8_valid(const char *p, size_t n);
size_t bpe_put(uint32_t cp, char *to); /* 1 to 4 bytes */
/* The character at p of valid UTF-8; *n its bytes. */
uint32_t bpe_get(const char *p, size_t *n);
static inline size_t bpe_char_len(unsigned char c)
{
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}
bool bpe_is_space(uint32_t cp); /* White_Space */
bool bpe_is_word(uint32_t cp); /* \w of Unicode: letters, marks, digits, connectors, joiners */
size_t bpe_skip_space(const char *p, size_t n); /* bytes of white space in front */
size_t bpe_trim_space(const char *p, size_t n); /* n without the white space at its end */
/* The byte that a character of the byte-level alphabet stands for, -1: it is not of it. */
int bpe_alias(uint32_t cp);
/* A name in the byte-level alphabet as bytes; false when a character is not of it. */
bool bpe_unalias(const char *name, size_t n, char *to, size_t *len);

/* ---- regular expressions ------------------------------------------------------------------- */

/* Compiles a pattern of the reference's dialect (Oniguruma). EUNSUPPORTED: err names the construct.
 * where: "tokenizer.json: pre_tokenizer". */
turbo_status bpe_regex_new(const char *pattern, size_t len, const char *where, bpe_regex **out,
                           turbo_err *err);
void bpe_regex_free(bpe_regex *re);
/* Where a search over one text stands; zeroed at its start. */
typedef struct bpe_search {
    size_t from, end; /* end of the last match */
    bool any;
} bpe_search;
/* The next match, which may be empty. 1 found, 0 none, negative: a turbo_status. */
int bpe_regex_next(const bpe_regex *re, bpe_scratch *s, const char *text, size_t len,
                   bpe_search *at, size_t *start, size_t *end);
struct bpe_matcher *bpe_matcher_new(void); /* NULL: no memory */
void bpe_matcher_free(struct bpe_matcher *m);
turbo_status bpe_match_failed(int rc, turbo_err *err);

/* ---- building ------------------------------------------------------------------------------ */

/* Copies n bytes into the arena. UINT32_MAX: no memory. */
uint32_t bpe_keep(bpe *b, const char *p, size_t n);
/* A token of the vocabulary file `file`; errors: id out of range or taken, name too long. */
turbo_status bpe_add_token(bpe *b, const char *file, uint32_t id, const char *name, size_t len,
                           uint32_t flags, turbo_err *err);
/* Every id up to the last has a name, no name stands there twice; fills b->names. */
turbo_status bpe_close_vocab(bpe *b, const char *file, turbo_err *err);
turbo_status bpe_merges_init(bpe *b, size_t n, turbo_err *err);
turbo_status bpe_add_merge(bpe *b, const char *file, uint32_t rank, const char *l, size_t l_len,
                           const char *r, size_t r_len, turbo_err *err);

/* Reads FOLDER; all but the tables of index.c. */
turbo_status bpe_load_json(bpe *b, const turbo_host *h, const char *folder, turbo_err *err);
turbo_status bpe_load_files(bpe *b, const turbo_host *h, const char *folder, turbo_err *err);
turbo_status bpe_load_gguf(bpe *b, const turbo_host *h, const char *folder, turbo_err *err);
/* 40 when folder is a GGUF file with such a tokenizer, else 0. */
int32_t bpe_gguf_probe(const turbo_host *h, const char *folder);
turbo_status bpe_read_vocab(bpe *b, const bpe_json *j, const bpe_node *vocab, turbo_err *err);
/* An entry of added_tokens: a new token or flags for a known one. */
turbo_status bpe_add_added(bpe *b, const char *file, uint32_t id, const char *name, size_t len,
                           uint32_t flags, turbo_err *err);
turbo_status bpe_added_flags(const bpe_json *j, const bpe_node *v, bool special, uint32_t *flags,
                             turbo_err *err);
/* The small files beside the vocabulary, all optional. */
typedef struct bpe_side {
    bpe_json config, map, added; /* tokenizer_config, special_tokens_map, added_tokens .json */
} bpe_side;
turbo_status bpe_side_open(const turbo_host *h, const char *folder, bpe_side *s, turbo_err *err);
void bpe_side_free(bpe_side *s);
/* Added tokens that they name, before the vocabulary is closed. slow: there is no tokenizer.json, so
 * added_tokens.json counts too. */
turbo_status bpe_side_added(bpe *b, const bpe_side *s, bool slow, turbo_err *err);
/* bos, eos, unk and what else is special, once it is closed. */
turbo_status bpe_side_roles(bpe *b, const bpe_side *s, turbo_err *err);
turbo_status bpe_read_normalizer(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err);
turbo_status bpe_read_pre(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err);
turbo_status bpe_read_post(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err);
turbo_status bpe_byte_level(bpe *b, bool prefix, bool regex, turbo_err *err);
turbo_status bpe_add_split(bpe *b, const char *pattern, int32_t behavior, bool invert,
                           turbo_err *err);
bpe_rule *bpe_new_rule(bpe_rules *rules, int32_t kind, turbo_err *err);
void bpe_rules_free(bpe_rules *rules);
/* Fills out and first of every token. v: the decoder of tokenizer.json, NULL for none. */
turbo_status bpe_read_decoder(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err);
turbo_status bpe_decode_bytes(bpe *b, turbo_err *err); /* ByteLevel alone */
turbo_status bpe_index(bpe *b, turbo_err *err);

/* What a wrong or unknown value of a rule is called in messages. */
turbo_status bpe_bad_rule(turbo_err *err, const bpe_json *j, const char *part, const bpe_node *v);

/* ---- maps ---------------------------------------------------------------------------------- */

uint64_t bpe_hash(const char *p, size_t n);
turbo_status bpe_map_init(bpe_map *m, size_t keys, bool by_text, turbo_err *err);
void bpe_map_free(bpe_map *m);
int32_t bpe_map_find(const bpe *b, const bpe_map *m, const char *p, size_t n); /* -1: none */
bool bpe_map_add(bpe *b, bpe_map *m, int32_t id); /* false: the string is there */
const bpe_merge *bpe_merge_find(const bpe *b, int32_t left, int32_t right);
turbo_status bpe_trie_build(const bpe *b, const int32_t *ids, size_t n, const bpe_buf *names,
                            bpe_trie *t, turbo_err *err);
uint32_t bpe_trie_longest(const bpe_trie *t, const char *p, size_t n, int32_t *id);

static inline uint32_t bpe_join_bit(uint32_t left, uint32_t right)
{
    return ((left * 0x9E3779B1u) ^ (right * 0x85EBCA77u + 0x165667B1u)) >> 13;
}

/* ---- encoding ------------------------------------------------------------------------------ */

turbo_status bpe_encode(const bpe *b, bpe_scratch *s, const char *text, size_t len, uint32_t flags,
                        bpe_ids *out, turbo_err *err);
/* *text, *len: in, and out: the normalised text, in place or in the scratch. *start becomes false
 * when the start of the text was cut off. */
turbo_status bpe_normalize(const bpe *b, bpe_scratch *s, const char **text, size_t *len,
                           bool *start, turbo_err *err);
turbo_status bpe_normal_form(bpe_scratch *s, int32_t kind, const char *text, size_t len,
                             bpe_buf *to, turbo_err *err);
/* start: the text begins the document. */
turbo_status bpe_pre(const bpe *b, bpe_scratch *s, int rule, const char *text, size_t len,
                     bool start, bpe_ids *out, turbo_err *err);
turbo_status bpe_model(const bpe *b, bpe_scratch *s, const char *text, size_t len, bpe_ids *out,
                       turbo_err *err);

bpe_pool *bpe_pool_new(void);
void bpe_pool_free(bpe_pool *p);
bpe_scratch *bpe_pool_take(bpe_pool *p); /* NULL: no memory */
void bpe_pool_give(bpe_pool *p, bpe_scratch *s);

#endif
