/* core/cli/bench_turns.c: turbo bench turns: measures what it is told to, a line of standard input at a time, so
 * that a script can let this engine and another one take turns while both stay loaded. Main thread. Must not
 * know with whom it alternates. */
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/checked.h"
#include "util/err.h"

#define MOST_BATCH 1024
#define LINE_MOST ((size_t)1 << 20)

typedef struct turns {
    turbod_service service;
    turbok_device *device; /* for what the machine can do; NULL until it is asked for */
    int threads;
} turns;

static turbo_status number(char **rest, int64_t lo, int64_t hi, int64_t *out, turbo_err *err)
{
    char *word = strtok_r(NULL, " \n", rest), *end = NULL;
    long long v = word ? strtoll(word, &end, 10) : 0;
    if (!word || end == word || *end || v < lo || v > hi)
        return turbod_err(err, TURBOD_EUSAGE, "\"%.20s\" should be a number from %lld to %lld",
                          word ? word : "", (long long)lo, (long long)hi);
    *out = v;
    return TURBO_OK;
}

static turbo_status turn_decode(turns *t, char *rest, turbo_err *err)
{
    int64_t batch, context, steps, seed;
    turbo_status st = number(&rest, 1, MOST_BATCH, &batch, err);
    if (!st)
        st = number(&rest, 1, CLI_BENCH_MOST_TOKENS, &context, err);
    if (!st)
        st = number(&rest, 4, 65536, &steps, err);
    if (!st)
        st = number(&rest, 0, INT32_MAX, &seed, err);
    if (st)
        return st;
    cli_crowd c;
    st = cli_crowd_decode(&t->service, (int32_t)batch, (int32_t)context, (int32_t)steps,
                          (uint64_t)seed, &c, err);
    if (!st)
        printf("{\"seconds_a_step\":%.9f,\"steps\":%d}\n", c.window / c.steps, c.steps);
    return st;
}

static turbo_status turn_prefill(turns *t, char *rest, turbo_err *err)
{
    int64_t length, seed;
    turbo_status st = number(&rest, 1, CLI_BENCH_MOST_TOKENS, &length, err);
    if (!st)
        st = number(&rest, 0, INT32_MAX, &seed, err);
    if (st)
        return st;
    cli_ask ask = {(int32_t)length, 1, (uint64_t)seed};
    cli_crowd c;
    st = cli_crowd_run(&t->service, &ask, 1, &c, err);
    if (!st)
        printf("{\"seconds\":%.9f,\"cached\":%lld}\n", c.prompt_ms * 1e-3, (long long)c.cached);
    return st;
}

static turbo_status turn_greedy(turns *t, char *rest, turbo_err *err)
{
    int64_t n;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    turbo_status st = number(&rest, 1, CLI_BENCH_MOST_TOKENS, &n, err);
    char *list = strtok_r(NULL, " \n", &rest);
    if (!st)
        st = cli_parse_ids(list ? list : "", &ids, &n_ids, err);
    if (!st && (n_ids < 1 || n_ids > INT32_MAX))
        st = turbod_err(err, TURBOD_EUSAGE, "greedy N ID,ID,...: at least one id is needed");
    if (!st) {
        turbod_request_spec spec = {.prompt = ids,
                                    .n_prompt = (int32_t)n_ids,
                                    .max_tokens = (int32_t)n,
                                    .ignore_eos = true};
        cli_answer answer = {0};
        turbod_sample_defaults(&spec.params);
        spec.params.temperature = 0;
        st = cli_generate(&t->service, &spec, NULL, &answer, err);
        if (!st) {
            fputs("{\"ids\":[", stdout);
            for (size_t i = 0; i < answer.n_ids; i++)
                printf("%s%d", i ? "," : "", answer.ids[i]);
            fputs("]}\n", stdout);
        }
        cli_answer_free(&answer);
    }
    free(ids);
    return st;
}

static turbo_status turn_machine(turns *t, turbo_err *err)
{
    turbok_device_opts o = {.threads = t->threads, .spin_us = -1};
    turbok_speed speed;
    turbo_status st = t->device ? TURBO_OK : turbok_device_open(&o, &t->device, err);
    if (!st)
        st = turbok_measure(t->device, (size_t)512 << 20, 5, &speed, err);
    if (!st)
        printf("{\"read_bytes_per_s\":%.6g,\"fma_flops\":%.6g}\n", speed.read_bytes_s,
               speed.fma_flops);
    return st;
}

static void print_facts(const turns *t)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(t->service.engine);
    char machine[200];
    cli_machine(machine, sizeof machine);
    fputs("{\"machine\":", stdout);
    cli_put_json(stdout, machine, strlen(machine));
    fputs(",\"device\":", stdout);
    cli_put_json(stdout, f->device, strlen(f->device));
    printf(",\"kv\":\"%s\",\"vocab\":%d,\"weight_bytes\":%llu,\"kv_bytes_a_token\":%.1f,"
           "\"load_seconds\":%.3f}\n",
           f->kv_type, f->model.vocab, (unsigned long long)f->plan.bytes[TURBOD_MEM_WEIGHTS],
           (double)f->plan.bytes[TURBOD_MEM_KV] / ((double)f->kv_blocks * f->block_tokens),
           f->load_seconds);
}

/* An error is an answer too, and the next line is read. */
static void answer(turns *t, char *line)
{
    char *rest = NULL, *word = strtok_r(line, " \n", &rest);
    turbo_err err = {{0}};
    turbo_status st = TURBO_OK;
    if (!word)
        return;
    if (!strcmp(word, "decode"))
        st = turn_decode(t, rest, &err);
    else if (!strcmp(word, "prefill"))
        st = turn_prefill(t, rest, &err);
    else if (!strcmp(word, "greedy"))
        st = turn_greedy(t, rest, &err);
    else if (!strcmp(word, "machine"))
        st = turn_machine(t, &err);
    else
        st = turbod_err(&err, TURBOD_EUSAGE, "\"%.20s\" is not decode, prefill, greedy or machine",
                        word);
    if (st) {
        fputs("{\"error\":", stdout);
        cli_put_json(stdout, err.text, strlen(err.text));
        fputs("}\n", stdout);
    }
    fflush(stdout);
}

static int run_turns(cli_args *a)
{
    turbo_err err = {{0}};
    turns t = {.threads = (int)a->conf->threads};
    char *line = NULL;
    size_t cap = 0;
    turbo_status st = cli_open_model_for(a, &t.service, false, cli_int(a, "tokens", 4096), &err);
    if (st)
        return cli_fail(st, &err);
    cli_catch_interrupts();
    print_facts(&t);
    fflush(stdout);
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0 && (size_t)n < LINE_MOST;)
        answer(&t, line);
    free(line);
    turbok_device_close(t.device);
    turbod_service_close(&t.service);
    return 0;
}

static const cli_flag flags[] = {
    {"tokens", CLI_INT, "N", "Tokens that the KV cache holds, of all sequences. Default: 4096.", 1,
     CLI_BENCH_MOST_TOKENS},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

const cli_cmd cli_bench_turns = {
    .name = "bench turns",
    .words = "MODEL [flags]",
    .summary = "Measures at a script's word, so that two engines can take turns.",
    .about =
        "Prints a JSON object about the model, then answers each line of standard input with one:\n"
        "  decode BATCH CONTEXT STEPS SEED   seconds a step\n"
        "  prefill LENGTH SEED               seconds\n"
        "  greedy N ID,ID,...                the next N tokens\n"
        "  machine                           read bandwidth and multiply-add peak\n"
        "Prompts are random tokens: splitmix64 from SEED (of sequence i: SEED + i), modulo the "
        "vocabulary.\n",
    .flags = flags,
    .keys = "model plugin_path log_level model_format quantize allow_nonfinite engine",
    .min_words = 0,
    .max_words = 1,
    .run = run_turns,
};
