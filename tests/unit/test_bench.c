/* tests/unit/test_bench.c: what `turbo bench` reads and computes: traces, quantiles, arrivals, HTTP answers
 * and event streams cut at every byte. No server and no clock. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/bench.h"

static void close_to(double a, double b, double tolerance)
{
    if (!(fabs(a - b) <= tolerance))
        fail_msg("%.17g, wanted %.17g", a, b);
}

/* ---- statistics ----------------------------------------------------------------------------------------- */

/* numpy 1.26: np.percentile(a, q), np.mean(a) for a = [((i*7919) % 1009) * 0.37 - 11 for i in range(257)];
 * tolerance: a few roundings of values below 400. */
static void test_quantiles(void **state)
{
    static const double q[] = {0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1};
    static const double want[] = {
        -11.0, -8.3212, 81.13, 174.37, 323.332, 357.0612, 360.47112000000004, 360.85};
    cli_samples s = {0};
    (void)state;
    assert_true(cli_samples_quantile(&s, 0.5) == 0 && cli_samples_mean(&s) == 0);
    for (int i = 0; i < 257; i++)
        cli_samples_add(&s, (i * 7919 % 1009) * 0.37 - 11);
    for (int i = 0; i < 8; i++)
        close_to(cli_samples_quantile(&s, q[i]), want[i], 1e-10);
    close_to(cli_samples_mean(&s), 174.65649805447472, 1e-10);
    cli_samples_add(&s, -100); /* sorted again after more came */
    close_to(cli_samples_quantile(&s, 0), -100, 0);
    cli_samples_free(&s);
    double four[] = {3.5, -1, 2, 8};
    close_to(cli_median(four, 4), 2.75, 0);
    cli_samples_add(&s, 7);
    close_to(cli_samples_quantile(&s, 0.99), 7, 0);
    cli_samples_free(&s);
}

/* splitmix64's published sequence for seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64"), and
 * exponential gaps: one seed, so the statistics are fixed numbers; chi-square of 32 bins of equal
 * probability has mean 31, and 61.1 is passed with probability 0.001. */
static void test_arrivals(void **state)
{
    static const uint64_t want[] = {6457827717110365317u, 3203168211198807973u,
                                    9817491932198370423u, 4593380528125082431u,
                                    16408922859458223821u};
    uint64_t r = 1234567, again;
    (void)state;
    for (int i = 0; i < 5; i++)
        assert_true(cli_random(&r) == want[i]);
    enum { N = 200000, BINS = 32 };
    int bins[BINS] = {0};
    double sum = 0, chi = 0;
    r = again = 1;
    for (int i = 0; i < N; i++) {
        double gap = cli_random_exp(&r, 0.25);
        assert_true(gap >= 0 && gap == cli_random_exp(&again, 0.25));
        sum += gap;
        bins[(int)((1 - exp(-gap / 0.25)) * BINS)]++;
    }
    close_to(sum / N, 0.25, 5 * 0.25 / sqrt(N)); /* five standard errors */
    for (int i = 0; i < BINS; i++)
        chi += pow(bins[i] - (double)N / BINS, 2) / ((double)N / BINS);
    assert_true(chi < 61.1);
}

/* ---- traces ------------------------------------------------------------------------------------------------ */

static char folder[512];

static const char *golden(const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void test_azure(void **state)
{
    cli_trace t;
    turbo_err err;
    (void)state;
    assert_int_equal(cli_trace_read(golden("azure.csv"), CLI_TRACE_AUTO, 100, HUGE_VAL, &t, &err),
                     0);
    assert_int_equal(t.format, CLI_TRACE_AZURE);
    assert_int_equal(t.n, 3);
    assert_int_equal(t.items[0].n_in, 374);
    assert_int_equal(t.items[1].n_out, 109);
    assert_int_equal(t.items[2].n_in, 0);
    close_to(t.items[1].at, 0.75, 1e-6); /* over midnight */
    close_to(t.items[2].at, 3.2500001, 1e-6);
    cli_trace_free(&t);
    assert_int_equal(cli_trace_read(golden("azure.csv"), CLI_TRACE_AZURE, 2, HUGE_VAL, &t, &err),
                     0);
    assert_int_equal(t.n, 2);
    cli_trace_free(&t);
    assert_int_equal(cli_trace_read(golden("azure.csv"), CLI_TRACE_AZURE, 9, 0.75, &t, &err), 0);
    assert_int_equal(t.n, 1);
    cli_trace_free(&t);
}

static void test_mooncake(void **state)
{
    cli_trace t;
    turbo_err err;
    (void)state;
    assert_int_equal(cli_trace_read(golden("mooncake.jsonl"), CLI_TRACE_AUTO, 100, HUGE_VAL, &t,
                                    &err),
                     0);
    assert_int_equal(t.format, CLI_TRACE_MOONCAKE);
    assert_int_equal(t.n, 3);
    assert_int_equal(t.items[0].n_blocks, 3);
    assert_int_equal(t.blocks[t.items[2].blocks + 1], 7);
    close_to(t.items[2].at, 3, 1e-9);
    cli_trace_free(&t);
}

static void test_sharegpt(void **state)
{
    cli_trace t;
    turbo_err err;
    (void)state;
    assert_int_equal(cli_trace_read(golden("sharegpt.json"), CLI_TRACE_AUTO, 100, 0, &t, &err), 0);
    assert_int_equal(t.format, CLI_TRACE_SHAREGPT);
    assert_int_equal(t.n, 2);
    assert_int_equal(t.skipped, 1);
    assert_string_equal(t.items[0].prompt, "What is a \"KV cache\"? {[}");
    assert_string_equal(t.items[0].answer, "Keys and values, kept.");
    assert_string_equal(t.items[1].prompt, "Gr\xc3\xbc\xc3\x9f"
                                           "e");
    cli_trace_free(&t);
}

/* Text in a file; what the reader says, which must begin with the path and hold `words`. */
static void refused(const char *text, cli_trace_format f, turbo_status want, const char *words)
{
    char path[] = "/tmp/turbo-trace-XXXXXX";
    int fd = mkstemp(path);
    cli_trace t;
    turbo_err err = {{0}};
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    turbo_status st = cli_trace_read(path, f, 100, HUGE_VAL, &t, &err);
    cli_trace_free(&t);
    unlink(path);
    if (st != want || strncmp(err.text, path, strlen(path)) || !strstr(err.text, words))
        fail_msg("\"%s\": status %d, \"%s\"; wanted %d and \"%s\"", text, st, err.text, want,
                 words);
}

static void test_damaged(void **state)
{
    cli_trace t;
    turbo_err err;
    (void)state;
    const cli_trace_format A = CLI_TRACE_AUTO;
    assert_int_equal(cli_trace_read("/nonexistent", A, 1, 1, &t, &err), TURBO_ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent"));
    refused("", A, TURBO_EDATA, "neither Azure CSV");
    refused("hello\n", A, TURBO_EDATA, ":1: neither Azure CSV");
    refused("TIMESTAMP,ContextTokens,GeneratedTokens\n", A, TURBO_EDATA, "holds no requests");
    refused("TIMESTAMP,a,b\n2023-11-16 18:15:46,1,2\n2023-11-16 18:15:47,x,2\n", A, TURBO_EDATA,
            ":3: behind the time");
    refused("2023-11-16 18:15:46,1,2,3\n", A, TURBO_EDATA, ":1: behind the time");
    refused("2023-11-16 18:15:46,99999999,2\n", A, TURBO_EDATA, ":1: behind the time");
    refused("2023-13-16 18:15:46,1,2\n", A, TURBO_EDATA, ":1: no time");
    refused("2023-11-16 18:15:46.,1,2\n", A, TURBO_EDATA, ":1: no time");
    refused("2023-11-16 18:15:46,1,2\n2093-11-16 18:15:46,1,2\n", A, TURBO_EDATA,
            ":2: the time is");
    refused("{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n{\"timestamp\":\n", A,
            TURBO_EDATA, ":2: ");
    refused("{\"timestamp\":0,\"input_length\":-1,\"output_length\":1}\n", A, TURBO_EDATA,
            ":1: timestamp");
    refused("{\"timestamp\":0,\"input_length\":513,\"output_length\":1,\"hash_ids\":[4]}\n", A,
            TURBO_EDATA, ":1: input_length 513 needs 2 hash_ids");
    refused("{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[\"a\"]}\n", A,
            TURBO_EDATA, ":1: hash_ids holds");
    refused("[{\"conversations\":[]}]", A, TURBO_EDATA, "begin with a question");
    refused("[\n{\"conversations\":[]},\n{\"con", A, TURBO_EDATA, ":3: a dialogue");
    refused("[\n{\"conversations\":[]}\n{}]", A, TURBO_EDATA, ":3: a comma");
    refused("[{\"id\":1}]", A, TURBO_EDATA, ":1: a dialogue without");
    refused("{}", CLI_TRACE_SHAREGPT, TURBO_EDATA, ":1: a list");
}

/* The published figures of the whole file: performance reference, section 6. */
static void test_whole_azure(void **state)
{
    const char *shared = getenv("TURBO_SHARED");
    char path[1024];
    cli_trace t;
    turbo_err err;
    cli_samples in = {0}, out = {0};
    (void)state;
    snprintf(path, sizeof path, "%s/data/text/traces/azure-2023/AzureLLMInferenceTrace_conv.csv",
             shared ? shared : "");
    if (access(path, R_OK)) {
        print_message("SKIP: %s is not there\n", path);
        skip();
    }
    assert_int_equal(cli_trace_read(path, CLI_TRACE_AUTO, SIZE_MAX, HUGE_VAL, &t, &err), 0);
    assert_int_equal(t.n, 19366);
    for (size_t i = 0; i < t.n; i++) {
        cli_samples_add(&in, t.items[i].n_in);
        cli_samples_add(&out, t.items[i].n_out);
    }
    close_to(cli_samples_quantile(&in, 0.5), 1020, 0.5);
    close_to(cli_samples_quantile(&in, 0.9), 2735, 0.5);
    close_to(cli_samples_quantile(&in, 0.99), 4142, 0.5);
    close_to(cli_samples_quantile(&out, 0.5), 129, 0.5);
    close_to(cli_samples_quantile(&out, 0.9), 424, 0.5);
    close_to(cli_samples_quantile(&out, 0.99), 601, 0.5);
    close_to(t.items[t.n - 1].at, 3502, 1);
    cli_samples_free(&in);
    cli_samples_free(&out);
    cli_trace_free(&t);
}

/* ---- HTTP ---------------------------------------------------------------------------------------------------- */

typedef struct answer {
    const char *bytes, *body, *wrong; /* wrong: words of the complaint */
    int status;
    bool whole, closed, stream; /* closed: complete when the peer closes here */
} answer;

static void collect(void *ctx, const char *p, size_t n)
{
    turbod_buf_add(ctx, p, n);
}

/* Fed in pieces of `step` bytes. */
static void feed(const answer *a, size_t step)
{
    cli_http h = {0};
    turbod_buf body;
    const char *wrong = NULL;
    size_t n = strlen(a->bytes);
    turbod_buf_init(&body, 1 << 20);
    turbod_buf_str(&body, "");
    for (size_t i = 0; i < n && !wrong; i += step)
        wrong = cli_http_feed(&h, a->bytes + i, step < n - i ? step : n - i, collect, &body);
    if (a->wrong) {
        if (!wrong || !strstr(wrong, a->wrong))
            fail_msg("\"%s\" in pieces of %zu: \"%s\"", a->bytes, step, wrong ? wrong : "taken");
    } else if (wrong || h.status != a->status || strcmp(body.ptr, a->body) ||
               cli_http_whole(&h) != a->whole || cli_http_closed(&h) != a->closed ||
               h.stream != a->stream) {
        fail_msg("\"%s\" in pieces of %zu: %s, status %d, body \"%s\", whole %d, closed %d",
                 a->bytes, step, wrong ? wrong : "taken", h.status, body.ptr, cli_http_whole(&h),
                 cli_http_closed(&h));
    }
    turbod_buf_free(&body);
}

static void test_http(void **state)
{
    static const answer answers[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", NULL, 200, true, true,
         false},
        {"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", "", NULL, 200, true, true, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "hel", NULL, 200, false, false, false},
        {"HTTP/1.0 404 No\n\nuntil the end", "until the end", NULL, 404, false, true, false},
        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 X\r\nContent-Length: 1\r\n\r\nx", "x", NULL,
         503, true, true, false},
        {"HTTP/1.1 204 None\r\n\r\n", "", NULL, 204, true, true, false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream; "
         "x=y\r\n\r\n"
         "5\r\nhello\r\n1;a=\"b\"\r\n \r\n00C\r\nworld\r\n0\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n",
         "hello world\r\n0\r\n\r\n", NULL, 200, true, true, true},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "abc", NULL, 200,
         false, false, false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", "", "longer", 0, 0,
         0, 0},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "", "without a size", 0, 0,
         0, 0},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "",
         "without a size", 0, 0, 0, 0},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "", "other than chunked", 0, 0, 0,
         0},
        {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "", "twice", 0, 0, 0,
         0},
        {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "", "no number", 0, 0, 0, 0},
        {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "", "behind the end", 0, 0, 0, 0},
        {"SSH-2.0-OpenSSH\r\n", "", "no HTTP", 0, 0, 0, 0},
        {"HTTP/1.1 20 OK\r\n\r\n", "", "no HTTP", 0, 0, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++)
        for (size_t step = 1; step <= strlen(answers[i].bytes); step++)
            feed(&answers[i], step);
    cli_http h = {0};
    char *flood = malloc(70000);
    assert_non_null(flood);
    memset(flood, 'a', 70000);
    assert_null(cli_http_feed(&h, "HTTP/1.1 200 OK\r\n", 17, collect, NULL));
    assert_non_null(cli_http_feed(&h, flood, 70000, collect, NULL));
    free(flood);
}

/* ---- event streams --------------------------------------------------------------------------------------- */

static void note(void *ctx, const char *p, size_t n)
{
    turbod_buf_add(ctx, "[", 1);
    turbod_buf_add(ctx, p, n);
    turbod_buf_add(ctx, "]", 1);
}

static void test_sse(void **state)
{
    static const struct {
        const char *bytes, *events;
    } streams[] = {
        {"data: a\n\ndata: b\n\n", "[a][b]"},
        {"data: a\r\n\r\ndata:b\r\rdata:  c\n\r\n", "[a][b][ c]"},
        {": ping\n\nevent: x\nid: 3\ndata: a\ndata: b\ndata\nretry: 1\n\n", "[a\nb\n]"},
        {"data: unfinished\n", ""},
        {"database: x\n\ndata: {\"a\": \"data: x\"}\n\n", "[{\"a\": \"data: x\"}]"},
        {"\n\n\ndata:\n\n", "[]"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++)
        for (size_t step = 1, n = strlen(streams[i].bytes); step <= n; step++) {
            cli_sse s;
            turbod_buf got;
            cli_sse_init(&s);
            turbod_buf_init(&got, 1000);
            turbod_buf_str(&got, "");
            for (size_t at = 0; at < n; at += step)
                assert_true(cli_sse_feed(&s, streams[i].bytes + at, step < n - at ? step : n - at,
                                         note, &got));
            assert_string_equal(got.ptr, streams[i].events);
            turbod_buf_free(&got);
            cli_sse_free(&s);
        }
    cli_sse s;
    cli_sse_init(&s);
    bool ok = true;
    for (int i = 0; i < 300 && ok; i++) { /* a line without end */
        static char block[4096];
        memset(block, 'x', sizeof block);
        ok = cli_sse_feed(&s, block, sizeof block, note, NULL);
    }
    assert_false(ok);
    cli_sse_free(&s);
}

static cli_event event(const char *text)
{
    cli_event e;
    if (!cli_event_read(text, strlen(text), &e))
        fail_msg("refused: %s", text);
    return e;
}

static void test_events(void **state)
{
    cli_event e;
    (void)state;
    assert_true(event("[DONE]").done);
    assert_true(event("{\"choices\":[{\"index\":0,\"text\":\" a\",\"finish_reason\":null}]}").text);
    assert_true(event("{\"choices\": [{\"delta\": {\"content\": \"x\"}}], \"usage\": null}").text);
    assert_true(event("{\"choices\":[{\"delta\":{\"reasoning_content\":\"x\"}}]}").text);
    assert_false(
        event("{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}").text);
    assert_false(event("{\"choices\":[{\"delta\":{\"content\":null}}]}").text);
    /* what looks like a key inside a text is none */
    assert_false(event("{\"id\":\"\\\"text\\\":\\\"x\\\"\",\"text\":\"\"}").text);
    assert_false(event("{\"a\":\"text\",\"text\":\"\"}").text);
    e = event("{\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}],\"usage\":null}");
    assert_true(e.finished && e.length && !e.usage && !e.text);
    e = event("{\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":4,"
              "\"prompt_tokens_details\":{\"cached_tokens\":2}}}");
    assert_true(e.usage && e.prompt == 5 && e.completion == 4 && e.cached == 2);
    e = event("{\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":4,"
              "\"prompt_tokens_details\":null}}");
    assert_true(e.usage && e.cached == 0);
    e = event("{\"choices\":[{\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":5,"
              "\"completion_tokens\": 41}}");
    assert_true(e.text && !e.usage && e.so_far == 41);
    assert_true(event("{\"text\":\"a\",\"usage\":{\"completion_tokens\":9999999999}}").so_far > 0);
    assert_int_equal(event("{\"text\":\"a\",\"usage\":null}").so_far, 0);
    e = event("{\"error\":{\"message\":\"no\",\"type\":\"x\",\"param\":null,\"code\":null}}");
    assert_true(e.error);
    assert_string_equal(e.message, "no");
    assert_false(event("{\"error\":null,\"text\":\"a\"}").error);
    assert_false(cli_event_read("hello", 5, &e));
    assert_false(cli_event_read("{\"usage\":{}", 11, &e));
    assert_false(cli_event_read("{\"usage\":{\"a\":}}", 16, &e));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantiles), cmocka_unit_test(test_arrivals),
        cmocka_unit_test(test_azure),     cmocka_unit_test(test_mooncake),
        cmocka_unit_test(test_sharegpt),  cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_http),      cmocka_unit_test(test_sse),
        cmocka_unit_test(test_events),    cmocka_unit_test(test_whole_azure),
    };
    const char *src = getenv("srcdir");
    snprintf(folder, sizeof folder, "%s/tests/golden/bench", src ? src : ".");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
