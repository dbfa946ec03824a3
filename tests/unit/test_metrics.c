/* tests/unit/test_metrics.c: what Prometheus reads: escapes of labels, buckets, sums. The whole page is
 * parsed by tests/http/test_metrics.py; here is what no configuration can produce. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "engine/metrics.h"

static void labels_are_escaped(void **state)
{
    static const char *const rows[][2] = {
        {"plain", "n=\"plain\""},
        {"a\"b\\c\nd", "n=\"a\\\"b\\\\c\\nd\""},
        {"\xe4\xb8\xad", "n=\"\xe4\xb8\xad\""},
        {"a\xff\xe4\xb8", "n=\"a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {"", "n=\"\""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_buf b;
        turbod_buf_init(&b, 4096);
        turbod_metrics_label(&b, "n", rows[i][0]);
        assert_string_equal(b.ptr, rows[i][1]);
        turbod_buf_free(&b);
    }
}

static void assert_line(const turbod_buf *b, const char *line)
{
    const char *at = strstr(b->ptr, line);
    if (!at || (at > b->ptr && at[-1] != '\n'))
        fail_msg("no line %s", line);
}

static void a_value_on_a_bound_is_below_it(void **state)
{
    static turbod_metrics m;
    turbod_buf b;
    (void)state;
    turbod_metrics_init(&m);
    turbod_hist_add(&m.itl, 0.0005);
    turbod_hist_add(&m.itl, 0.00051);
    turbod_hist_add(&m.itl, 1000);
    turbod_buf_init(&b, 1 << 20);
    turbod_metrics_write(&(turbod_metrics_of){"m", &m}, 1, true, &b);
    const char *const prefixes[] = {"turbo:", "vllm:"};
    const struct {
        const char *suffix;
    } lines[] = {
        {"inter_token_latency_seconds_bucket{model_name=\"m\",le=\"0.0005\"} 1\n"},
        {"inter_token_latency_seconds_bucket{model_name=\"m\",le=\"0.001\"} 2\n"},
        {"inter_token_latency_seconds_bucket{model_name=\"m\",le=\"300\"} 2\n"},
        {"inter_token_latency_seconds_bucket{model_name=\"m\",le=\"+Inf\"} 3\n"},
        {"inter_token_latency_seconds_sum{model_name=\"m\"} 1000.00101\n"},
        {"inter_token_latency_seconds_count{model_name=\"m\"} 3\n"},
    };
    for (size_t p = 0; p < 2; p++)
        for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
            char line[160] = "";
            snprintf(line, sizeof line, "%s%s", prefixes[p], lines[i].suffix);
            assert_line(&b, line);
        }
    turbod_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(a_value_on_a_bound_is_below_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
