/* core/cli/eval.c: turbo eval: what a model computes, without sampling: logits of given tokens, and the
 * perplexity of a text. Main thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "util/checked.h"
#include "util/err.h"

#define DEFAULT_WINDOW 1024

static const cli_flag flags[] = {
    {"ids", CLI_TEXT, "1,4,7", "logits: the tokens.", 0, 0},
    {"all", CLI_SWITCH, "", "logits: of every token, not of the last one only.", 0, 0},
    {"text", CLI_TEXT, "FILE", "ppl: the text; - is standard input.", 0, 0},
    {"window", CLI_INT, "TOKENS", "ppl: tokens in one window. Default: session_len, at most 1024.",
     2, 16777216},
    {"stride", CLI_INT, "TOKENS", "ppl: how far windows advance. Default: half a window.", 1,
     16777216},
    {"json", CLI_SWITCH, "", "ppl: prints one JSON object.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

static turbo_status logits_new(const turbod_service *s, size_t rows, float **out, turbo_err *err)
{
    size_t V = (size_t)turbod_engine_facts_of(s->engine)->model.vocab, n, bytes;
    *out = turbod_mul(rows, V, &n) && turbod_mul(n, sizeof **out, &bytes) ? malloc(bytes) : NULL;
    return *out ? TURBO_OK
                : turbod_err(err, TURBO_ENOMEM, "no memory for %zu rows of %zu logits", rows, V);
}

static turbo_status eval_logits(const cli_args *a, turbod_service *s, turbo_err *err)
{
    int32_t *ids = NULL, V = turbod_engine_facts_of(s->engine)->model.vocab;
    size_t n = 0;
    float *logits = NULL;
    bool all = cli_given(a, "all");
    turbo_status st = cli_parse_ids(cli_text(a, "ids"), &ids, &n, err);
    if (!st)
        st = n <= INT32_MAX ? logits_new(s, all ? n : 1, &logits, err)
                            : turbod_err(err, TURBO_ELIMIT, "too many ids");
    if (!st)
        st = turbod_engine_logits(s->engine, ids, (int32_t)n, all, logits, err);
    if (!st) {
        size_t rows = all ? n : 1;
        fputs("{\"ids\":[", stdout);
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? "," : "", ids[i]);
        printf("],\"vocab\":%d,\"logits\":[", V);
        for (size_t r = 0; r < rows; r++) {
            fputs(r ? ",\n[" : "\n[", stdout);
            for (int32_t v = 0; v < V; v++) {
                if (v)
                    putchar(',');
                cli_put_float(stdout, logits[r * (size_t)V + (size_t)v]);
            }
            putchar(']');
        }
        fputs("]}\n", stdout);
    }
    free(logits);
    free(ids);
    return st;
}

/* -log softmax(row)[id], in double. */
static double nll_of(const float *row, int32_t V, int32_t id)
{
    double most = (double)row[0], sum = 0;
    for (int32_t v = 1; v < V; v++)
        most = (double)row[v] > most ? (double)row[v] : most;
    for (int32_t v = 0; v < V; v++)
        sum += exp((double)row[v] - most);
    return log(sum) + most - (double)row[id];
}

typedef struct ppl {
    double nll; /* of all scored tokens */
    size_t scored, windows;
    int32_t window, stride;
} ppl;

/* Window k holds tokens k*stride .. k*stride+window-1 and scores those that no window before it has
 * scored, each given everything in front of it in the window. The first token is never scored. */
static turbo_status slide(turbod_service *s, const int32_t *ids, size_t n, ppl *p, turbo_err *err)
{
    float *logits = NULL;
    int32_t V = turbod_engine_facts_of(s->engine)->model.vocab;
    size_t W = (size_t)p->window, done = 1;
    turbo_status st = logits_new(s, W < n ? W : n, &logits, err);
    for (size_t at = 0; !st && done < n; at += (size_t)p->stride) {
        size_t end = at + W < n ? at + W : n;
        st = turbod_engine_logits(s->engine, ids + at, (int32_t)(end - at), true, logits, err);
        for (; !st && done < end; done++, p->scored++)
            p->nll += nll_of(logits + (done - 1 - at) * (size_t)V, V, ids[done]);
        p->windows++;
    }
    free(logits);
    if (!st && !isfinite(p->nll))
        st = turbod_err(err, TURBO_EDATA, "the model's logits are not finite");
    return st;
}

static turbo_status eval_ppl(const cli_args *a, turbod_service *s, turbo_err *err)
{
    turbod_buf text;
    int32_t *ids = NULL, len = turbod_engine_facts_of(s->engine)->session_len;
    size_t n = 0;
    int64_t window = cli_int(a, "window", len < DEFAULT_WINDOW ? len : DEFAULT_WINDOW);
    int64_t stride = cli_int(a, "stride", window / 2);
    turbo_status st = cli_read_text(cli_text(a, "text"), &text, err);
    if (!st && (window > len || stride < 1 || stride >= window))
        st = turbod_err(err, TURBOD_EUSAGE,
                        "window %lld, stride %lld: a window has at most session_len %d tokens, a "
                        "stride less than a window",
                        (long long)window, (long long)stride, len);
    if (!st)
        st = turbod_service_encode(s, text.ptr, text.len, true, false, &ids, &n, err);
    if (!st && n < 2)
        st = turbod_err(err, TURBO_EDATA, "the text has %zu tokens; 2 are needed", n);
    ppl p = {.window = (int32_t)window, .stride = (int32_t)stride};
    if (!st)
        st = slide(s, ids, n, &p, err);
    if (!st) {
        double mean = p.nll / (double)p.scored;
        printf(cli_given(a, "json")
                   ? "{\"perplexity\":%.9g,\"nll\":%.9g,\"tokens\":%zu,\"scored\":%zu,"
                     "\"windows\":%zu,\"window\":%d,\"stride\":%d,\"quant_policy\":%lld,\"kv\":\"%"
                     "s\"}\n"
                   : "perplexity %.6g, mean nll %.6g, %zu tokens, %zu scored in %zu windows of %d, "
                     "stride %d, quant_policy %lld (%s)\n",
               exp(mean), mean, n, p.scored, p.windows, p.window, p.stride,
               (long long)a->conf->quant_policy, turbod_engine_facts_of(s->engine)->kv_type);
    }
    free(ids);
    turbod_buf_free(&text);
    return st;
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    turbod_service s;
    const char *what = a->words[0];
    bool logits = !strcmp(what, "logits");
    if (!logits && strcmp(what, "ppl"))
        return cli_usage("turbo eval %s is not known; there are logits and ppl", what);
    if (logits && (!cli_given(a, "ids") || cli_given(a, "text") || cli_given(a, "window") ||
                   cli_given(a, "stride") || cli_given(a, "json")))
        return cli_usage("usage: turbo eval logits MODEL --ids 1,4,7 [--all]");
    if (!logits && (!cli_given(a, "text") || cli_given(a, "ids") || cli_given(a, "all")))
        return cli_usage("usage: turbo eval ppl MODEL --text FILE [--window N] [--stride N] "
                         "[--quant-policy 0|8|4] [--json]");
    for (int i = 1; i < a->n_words; i++) /* MODEL comes first for cli_open_model */
        a->words[i - 1] = a->words[i];
    a->n_words--;
    turbo_status st = cli_open_model(a, &s, false, &err);
    if (!st) {
        st = logits ? eval_logits(a, &s, &err) : eval_ppl(a, &s, &err);
        turbod_service_close(&s);
    }
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_eval = {
    .name = "eval",
    .words = "logits MODEL --ids IDS [--all] | ppl MODEL --text FILE [flags]",
    .summary = "Computes logits of tokens, or the perplexity of a text.",
    .about = "logits prints JSON with 9 significant digits, enough to get every fp32 back.\n"
             "ppl slides a window over the text's tokens (bos first, where the tokenizer has it). "
             "Each token\n"
             "but the first is scored once, in the first window that holds it, given all that is "
             "in front of\n"
             "it there. Perplexity is exp(mean negative log likelihood). --quant-policy 0, 8 or 4 "
             "shows what\n"
             "quantised keys and values cost.\n",
    .flags = flags,
    .keys = "model plugin_path log_level model_format quantize allow_nonfinite engine",
    .min_words = 1,
    .max_words = 2,
    .run = run,
};
