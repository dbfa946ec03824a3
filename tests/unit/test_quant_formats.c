/* Readers of quantised matrices: every format against what the published packages say its tensors stand for
 * (tests/golden/quant), to the bit, and folders whose tensors contradict each other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "st_file.h"
#include "util/file.h"
#include "util/json.h"
#include "util/log.h"
#include "util/sha256.h"
#include "weights/quant/quant.h"

static char folder[64];

static void put(const char *name, const void *data, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    if (!data)
        return;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* {"quantization_config": text}; NULL: no config.json. */
static void put_config(const char *text)
{
    char all[2048];
    int n = text ? snprintf(all, sizeof all, "{\"quantization_config\":%s}", text) : 0;
    assert_true(n >= 0 && (size_t)n < sizeof all);
    put("config.json", text ? all : NULL, (size_t)n);
}

/* Finds base in the folder; scans; unpacks into rows [rows,in] when wanted. */
static turbo_status look(const char *base, const char *model_format, int64_t rows, int64_t in,
                         float *out, turbod_quant_part *part, turbo_err *err)
{
    turbod_index *ix = NULL;
    turbod_quant *q = NULL;
    turbok_grid g;
    memset(err, 0, sizeof *err);
    turbo_status st = turbod_index_open(folder, &ix, err);
    assert_int_equal(st, TURBO_OK);
    st = turbod_quant_open(folder, model_format, 0, &q, err);
    if (!st)
        st = turbod_quant_find(q, ix, base, rows, in, part, err);
    if (!st && part->format)
        st = turbod_quant_scan(part, err);
    if (!st && part->format && (st = turbod_quant_grid(part, NULL, false, &g, err)) == TURBO_OK) {
        for (int64_t o = 0; o < rows && out; o++)
            turbok_grid_row(&g, o, in, out + o * in);
        turbod_quant_grid_free(&g);
    }
    turbod_quant_close(q);
    turbod_index_close(ix);
    return st;
}

static cJSON *golden(void)
{
    static const char *const files[] = {"formats.safetensors", "golden.json"};
    char path[512];
    uint8_t *bytes = NULL;
    uint64_t n = 0;
    turbo_err err = {{0}};
    cJSON *root = NULL;
    snprintf(path, sizeof path, "%s/tests/golden/quant", getenv("srcdir") ? getenv("srcdir") : ".");
    for (int i = 0; i < 2; i++) {
        if (turbod_file_read(path, files[i], 1 << 24, &bytes, &n, &err))
            fail_msg("%s", err.text);
        if (!i)
            put("model.safetensors", bytes, n);
        else
            assert_int_equal(turbod_json_parse((const char *)bytes, n, &turbod_json_file, &root,
                                               &err),
                             0);
        free(bytes);
    }
    return root;
}

static void test_published(void **state)
{
    (void)state;
    cJSON *cases = golden();
    int seen = 0;
    for (const cJSON *c = cases->child; c; c = c->next, seen++) {
        const char *base = turbod_json_get(c, "base")->valuestring;
        int64_t rows = 0, in = 0;
        assert_true(turbod_json_int(turbod_json_get(c, "rows"), 1, 4096, &rows));
        assert_true(turbod_json_int(turbod_json_get(c, "in"), 1, 4096, &in));
        char *config = cJSON_PrintUnformatted(turbod_json_get(c, "config"));
        float *w = malloc((size_t)(rows * in) * sizeof *w);
        turbod_quant_part part;
        turbo_err err;
        /* by its config, and by its tensors alone where they say enough */
        for (int blind = 0; blind < 2; blind++) {
            uint8_t digest[32];
            char hex[65];
            if (blind && !strcmp(base, "gptq_v2"))
                continue;
            put_config(blind ? NULL : config);
            turbo_status st = look(base, "", rows, in, w, &part, &err);
            if (st || !part.format)
                fail_msg("%s: %s", base, st ? err.text : "not found");
            turbod_sha256(w, (size_t)(rows * in) * sizeof *w, digest);
            for (int i = 0; i < 32; i++)
                snprintf(hex + 2 * i, 3, "%02x", digest[i]);
            const cJSON *first = turbod_json_get(c, "first")->child;
            for (int i = 0; i < 4; i++, first = first->next)
                if ((float)first->valuedouble < w[i] || (float)first->valuedouble > w[i])
                    fail_msg("%s%s: number %d is %.9g, not %.9g", base, blind ? " (blind)" : "", i,
                             (double)w[i], first->valuedouble);
            if (strcmp(hex, turbod_json_get(c, "sha256")->valuestring))
                fail_msg("%s%s: the first numbers are right, a later one is not", base,
                         blind ? " (blind)" : "");
        }
        free(w);
        free(config);
    }
    assert_int_equal(seen, 26);
    cJSON_Delete(cases);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),
    };
    turbod_log_level(-1);
    strcpy(folder, "/tmp/turbo-quant-XXXXXX");
    if (!mkdtemp(folder))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    put("config.json", NULL, 0);
    put("model.safetensors", NULL, 0);
    rmdir(folder);
    return rc;
}
