/* tests/model/gguf_tokens.c: two tokenizers compared: `gguf_tokens A B FILE...`, each a folder or a GGUF file. On
 * every line of the files: the same ids, as ordinary and as trusted text, at the start of a document and behind
 * it; and for every id the same bytes in both places. Prints how much was compared. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/host.h"
#include "plugin/registry.h"
#include "util/utf8.h"

enum { MOST = 1 << 16 };

typedef struct one {
    const turbo_tokenizer_vtbl *v;
    void *tok;
    turbo_tokenizer_info info;
    int32_t ids[MOST];
    uint64_t n;
} one;

static one a, b;
static turbo_err err;

static bool open_one(const turbod_registry *r, const char *path, one *o)
{
    turbo_status st = turbod_registry_tokenizer_for(r, path, &o->v, &err);
    if (!st)
        st = o->v->open(turbod_host_table(), path, &o->tok, &err);
    o->info.size = sizeof o->info;
    if (!st)
        o->v->info(o->tok, &o->info);
    return !st;
}

static bool encode(one *o, const char *p, size_t n, uint32_t flags)
{
    return !o->v->encode(o->tok, p, n, flags, o->ids, MOST, &o->n, &err);
}

static bool same_line(const char *p, size_t n)
{
    for (uint32_t flags = 0; flags < 4; flags++) {
        if (!encode(&a, p, n, flags) || !encode(&b, p, n, flags))
            return false;
        if (a.n == b.n && !memcmp(a.ids, b.ids, a.n * sizeof a.ids[0]))
            continue;
        printf("flags %u: %.*s\n", flags, (int)n, p);
        for (int k = 0; k < 2; k++) {
            for (uint64_t i = 0; i < (k ? b : a).n; i++)
                printf(" %d", (k ? b : a).ids[i]);
            printf("\n");
        }
        return false;
    }
    return true;
}

static long lines_of(const char *name)
{
    FILE *f = fopen(name, "rb");
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    long count = 0;
    if (!f)
        return -1;
    while ((n = getline(&line, &cap, f)) >= 0 && count >= 0)
        if (n < MOST && turbod_utf8_valid(line, (size_t)n))
            count = same_line(line, (size_t)n) ? count + 1 : -1;
    free(line);
    fclose(f);
    return count;
}

/* Bytes of an id. Control tokens of a GGUF file decode to nothing, and are hidden from readers in either. */
static bool same_pieces(void)
{
    for (int32_t id = 0; id < a.info.n_vocab; id++)
        for (uint32_t flags = 0; flags < 8; flags += 2) {
            const char *p = "", *q = "";
            uint32_t n = 0, m = 0;
            uint32_t hidden = TURBO_TOKEN_CONTROL | TURBO_TOKEN_SPECIAL;
            if (a.v->piece(a.tok, id, flags, &p, &n) || b.v->piece(b.tok, id, flags, &q, &m))
                return false;
            bool both = (a.v->attr(a.tok, id) & hidden) && (b.v->attr(b.tok, id) & hidden);
            if ((n == m && !memcmp(p, q, n)) || both)
                continue;
            printf("id %d, flags %u: \"%.*s\" and \"%.*s\"\n", id, flags, (int)n, p, (int)m, q);
            return false;
        }
    return true;
}

int main(int argc, char **argv)
{
    turbod_registry *r = NULL;
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    long lines = 0;
    if (argc < 4)
        return 64;
    if (turbod_registry_open(plugins ? plugins : "", &r, &err) || !open_one(r, argv[1], &a) ||
        !open_one(r, argv[2], &b)) {
        printf("%s\n", err.text);
        return 1;
    }
    if (a.info.n_vocab != b.info.n_vocab || a.info.bos != b.info.bos || a.info.eos != b.info.eos ||
        a.info.add_bos != b.info.add_bos) {
        printf("tokens %d %d, bos %d %d, eos %d %d, add_bos %d %d\n", a.info.n_vocab,
               b.info.n_vocab, a.info.bos, b.info.bos, a.info.eos, b.info.eos, a.info.add_bos,
               b.info.add_bos);
        return 1;
    }
    for (int i = 3; i < argc; i++) {
        long n = lines_of(argv[i]);
        if (n < 0) {
            printf("%s: %s\n", argv[i], err.text);
            return 1;
        }
        lines += n;
    }
    if (!same_pieces())
        return 1;
    printf("%ld lines, %d tokens: equal\n", lines, a.info.n_vocab);
    a.v->close(a.tok);
    b.v->close(b.tok);
    turbod_registry_close(r);
    return lines > 0 ? 0 : 1;
}
