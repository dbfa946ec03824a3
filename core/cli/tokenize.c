/* core/cli/tokenize.c: turbo tokenize and turbo detokenize: a tokenizer by itself; a folder with only
 * tokenizer files is enough. Main thread. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "plugin/host.h"
#include "util/err.h"

static const cli_flag tok_flags[] = {
    {"file", CLI_TEXT, "FILE", "Reads the text from a file; - is standard input.", 0, 0},
    {"json", CLI_SWITCH, "", "Prints {\"ids\": [...], \"pieces\": [...]}.", 0, 0},
    {"no-bos", CLI_SWITCH, "", "Adds no beginning-of-text token.", 0, 0},
    {"trusted", CLI_SWITCH, "", "Names of special tokens in the text become those tokens.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};
static const cli_flag detok_flags[] = {
    {"special", CLI_SWITCH, "", "Shows special tokens by their names.", 0, 0},
    {"json", CLI_SWITCH, "", "Prints {\"text\": ...}.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

typedef struct open_tok {
    turbod_registry *registry;
    const turbo_tokenizer_vtbl *v;
    void *tok;
} open_tok;

static turbo_status open_it(const cli_args *a, open_tok *t, turbo_err *err)
{
    *t = (open_tok){0};
    turbo_status st =
        turbod_registry_open(turbod_plugin_path(a->conf->plugin_path), &t->registry, err);
    if (!st)
        st = turbod_registry_tokenizer_for(t->registry, a->words[0], &t->v, err);
    return st ? st : t->v->open(turbod_host_table(), a->words[0], &t->tok, err);
}

static void close_it(open_tok *t)
{
    if (t->tok)
        t->v->close(t->tok);
    turbod_registry_close(t->registry);
}

static void print_ids(const cli_args *a, const open_tok *t, const int32_t *ids, size_t n)
{
    if (!cli_given(a, "json")) {
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? "," : "", ids[i]);
        putchar('\n');
        return;
    }
    fputs("{\"ids\":[", stdout);
    for (size_t i = 0; i < n; i++)
        printf("%s%d", i ? "," : "", ids[i]);
    fputs("],\"pieces\":[", stdout);
    for (size_t i = 0; i < n; i++) {
        const char *name = "";
        uint32_t len = 0;
        if (t->v->name(t->tok, ids[i], &name, &len))
            len = 0;
        if (i)
            putchar(',');
        cli_put_json(stdout, name, len);
    }
    fputs("]}\n", stdout);
}

static int run_tokenize(cli_args *a)
{
    turbo_err err = {{0}};
    open_tok t = {0};
    turbod_buf text;
    int32_t *ids = NULL;
    size_t n = 0;
    turbo_status st = TURBO_OK;
    if (a->n_words == 2 && cli_given(a, "file"))
        return cli_usage("give TEXT or --file, not both");
    if (a->n_words == 2) {
        turbod_buf_init(&text, strlen(a->words[1]) + 1);
        turbod_buf_str(&text, a->words[1]);
    } else {
        st = cli_read_text(cli_text(a, "file"), &text, &err);
    }
    if (!st)
        st = open_it(a, &t, &err);
    if (!st)
        st = turbod_encode_text(t.v, t.tok, text.ptr, text.len, !cli_given(a, "no-bos"),
                                cli_given(a, "trusted"), &ids, &n, &err);
    if (!st)
        print_ids(a, &t, ids, n);
    free(ids);
    turbod_buf_free(&text);
    close_it(&t);
    return st ? cli_fail(st, &err) : 0;
}

static turbo_status decode(const cli_args *a, const open_tok *t, const int32_t *ids, size_t n,
                           turbod_buf *out, turbo_err *err)
{
    turbo_tokenizer_info info = {.size = sizeof info};
    t->v->info(t->tok, &info);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= info.n_vocab)
            return turbod_err(err, TURBO_EINVAL, "token id %d is not in 0..%d", ids[i],
                              info.n_vocab - 1);
    turbod_detok *d = turbod_detok_new(t->v, t->tok, cli_given(a, "special"));
    const char *text;
    size_t len;
    if (!d)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a detokeniser");
    for (size_t i = 0; i < n; i++) {
        turbod_detok_push(d, ids[i], &text, &len);
        turbod_buf_add(out, text, len);
    }
    turbod_detok_flush(d, &text, &len);
    turbod_buf_add(out, text, len);
    turbod_detok_free(d);
    return out->failed ? turbod_err(err, TURBO_ENOMEM, "no memory for the text") : TURBO_OK;
}

static int run_detokenize(cli_args *a)
{
    turbo_err err = {{0}};
    open_tok t = {0};
    turbod_buf text, in;
    int32_t *ids = NULL;
    size_t n = 0;
    turbo_status st = TURBO_OK;
    turbod_buf_init(&text, (size_t)1 << 30);
    turbod_buf_str(&text, "");
    turbod_buf_init(&in, 1);
    if (a->n_words == 2)
        st = cli_parse_ids(a->words[1], &ids, &n, &err);
    else if (!(st = cli_read_text(NULL, &in, &err)))
        st = cli_parse_ids(in.ptr, &ids, &n, &err);
    if (!st)
        st = open_it(a, &t, &err);
    if (!st)
        st = decode(a, &t, ids, n, &text, &err);
    if (!st && cli_given(a, "json")) {
        fputs("{\"text\":", stdout);
        cli_put_json(stdout, text.ptr, text.len);
        fputs("}\n", stdout);
    } else if (!st) {
        fwrite(text.ptr, 1, text.len, stdout);
        putchar('\n');
    }
    free(ids);
    turbod_buf_free(&text);
    turbod_buf_free(&in);
    close_it(&t);
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_tokenize = {
    .name = "tokenize",
    .words = "MODEL [TEXT] [flags]",
    .summary = "Prints the token ids of a text.",
    .about = "Without TEXT the text comes from --file or standard input.\n",
    .flags = tok_flags,
    .keys = "plugin_path log_level",
    .min_words = 1,
    .max_words = 2,
    .run = run_tokenize,
};
const cli_cmd cli_detokenize = {
    .name = "detokenize",
    .words = "MODEL [IDS] [flags]",
    .summary = "Prints the text of token ids such as 1,4,7.",
    .about = "Without IDS they come from standard input.\n",
    .flags = detok_flags,
    .keys = "plugin_path log_level",
    .min_words = 1,
    .max_words = 2,
    .run = run_detokenize,
};
