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
    st = turbod_quant_open(folder, model_format, &q, err);
    if (!st)
        st = turbod_quant_find(q, ix, base, rows, in, part, err);
    if (!st && part->format)
        st = turbod_quant_scan(part, true, err);
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

/* ---- bad input ---------------------------------------------------------------------------------- */

enum { ZERO, ONES, HALF, HALF_INF, HALF_NAN, WIDE, WIDE_NAN, BRAIN, INDEX, STATE, SHAPE, NONE };

/* One tensor; d1 -1: one dimension, d0 -1 too: none. */
typedef struct entry {
    const char *name, *dtype;
    int64_t d0, d1;
    int fill;
} entry;

/* A matrix [32,64] in groups of 32, sound. */
static const struct {
    const char *format, *config;
    entry t[7];
} sound[] = {
    {"awq",
     "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32}",
     {{"m.qweight", "I32", 64, 4, ONES},
      {"m.qzeros", "I32", 2, 4, ZERO},
      {"m.scales", "F16", 2, 32, HALF}}},
    {"gptq",
     "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}",
     {{"m.qweight", "I32", 8, 32, ONES},
      {"m.qzeros", "I32", 2, 4, ZERO},
      {"m.scales", "F16", 2, 32, HALF},
      {"m.g_idx", "I32", 64, -1, INDEX}}},
    {"gptq",
     "{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":32}",
     {{"m.qweight", "I32", 16, 32, ONES},
      {"m.qzeros", "I32", 2, 8, ZERO},
      {"m.scales", "F16", 2, 32, HALF}}},
    {"compressed-tensors",
     "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{"
     "\"group_0\":"
     "{\"weights\":{\"num_bits\":4,\"group_size\":32}}}}",
     {{"m.weight_packed", "I32", 32, 8, ONES},
      {"m.weight_scale", "BF16", 32, 2, BRAIN},
      {"m.weight_shape", "I64", 2, -1, SHAPE},
      {"m.weight_zero_point", "I32", 4, 2, ZERO},
      {"m.weight_g_idx", "I32", 64, -1, INDEX}}},
    {"int8",
     "{\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\"}",
     {{"m.weight", "I8", 32, 64, ONES}, {"m.weight_scale", "BF16", 32, 1, BRAIN}}},
    {"bitsandbytes",
     "{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true}",
     {{"m.weight", "I8", 32, 64, ONES},
      {"m.SCB", "F32", 32, -1, WIDE},
      {"m.weight_format", "U8", -1, -1, ZERO}}},
    {"bitsandbytes",
     "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}",
     {{"m.weight", "U8", 1024, 1, ONES},
      {"m.weight.absmax", "U8", 32, -1, ONES},
      {"m.weight.quant_map", "F32", 16, -1, WIDE},
      {"m.weight.nested_absmax", "F32", 1, -1, WIDE},
      {"m.weight.nested_quant_map", "F32", 256, -1, WIDE},
      {"m.weight.quant_state.bitsandbytes__nf4", "U8", -2, -1, STATE}}},
    {"fp8",
     "{\"quant_method\":\"fp8\",\"weight_block_size\":[16,32]}",
     {{"m.weight", "F8_E4M3", 32, 64, ZERO}, {"m.weight_scale_inv", "F32", 2, 2, WIDE}}},
    {"mxfp4",
     "{\"quant_method\":\"mxfp4\"}",
     {{"m_blocks", "U8", 32, 32, ONES}, {"m_scales", "U8", 32, 2, ZERO}}},
};
enum { AWQ, GPTQ, GPTQ8, PACKED, INT8, LLM8, NF4, FP8, MXFP4, SETS };

static const char *state =
    "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[32,64],\"nested_offset\":0.1}";

static void add(st_file *f, const entry *e)
{
    static uint8_t data[65536];
    static const uint16_t halves[] = {
        [HALF] = 0x3800, [HALF_INF] = 0x7c00, [HALF_NAN] = 0x7e01, [BRAIN] = 0x3f00};
    int64_t d0 = e->d0 == -2 ? (int64_t)strlen(state) : e->d0;
    size_t n = d0 < 0 ? 1 : (size_t)(d0 * (e->d1 < 0 ? 1 : e->d1)), size = 1;
    if (strstr(e->dtype, "16"))
        size = 2;
    else if (strstr(e->dtype, "32"))
        size = 4;
    else if (strstr(e->dtype, "64"))
        size = 8;
    assert_true(n * size <= sizeof data);
    memset(data, e->fill == ONES ? 0xff : 0, n * size);
    for (size_t i = 0; i < n; i++) {
        float wide = 0.5f;
        uint32_t nan = 0x7fc00000u;
        int32_t index = (int32_t)i / 32;
        int64_t shape = i ? 64 : 32;
        if (e->fill == HALF || e->fill == BRAIN ||
            ((e->fill == HALF_INF || e->fill == HALF_NAN) && i == n / 2))
            memcpy(data + i * size, &halves[e->fill], 2);
        else if (e->fill == HALF_INF || e->fill == HALF_NAN)
            memcpy(data + i * size, &halves[HALF], 2);
        else if (e->fill == WIDE || e->fill == WIDE_NAN)
            memcpy(data + i * size,
                   e->fill == WIDE_NAN && i == n / 2 ? (void *)&nan : (void *)&wide, 4);
        else if (e->fill == INDEX)
            memcpy(data + i * size, &index, 4);
        else if (e->fill == SHAPE)
            memcpy(data + i * size, &shape, 8);
    }
    if (e->fill == STATE)
        memcpy(data, state, n);
    st_add(f, e->name, e->dtype, d0, e->d1, 0, data, n * size);
}

/* The sound set with tensor i (-1: none) replaced, and one more; then what the reader says. */
static turbo_status with(int set, int i, const entry *other, const entry *more, const char *config,
                         const char *model_format, turbo_err *err)
{
    st_file f = {0};
    turbod_quant_part part;
    for (int k = 0; k < 7 && sound[set].t[k].name; k++)
        if (k != i)
            add(&f, &sound[set].t[k]);
        else if (other->fill != NONE)
            add(&f, other);
    if (more)
        add(&f, more);
    st_write(&f, folder);
    put_config(config ? config : sound[set].config);
    turbo_status st = look("m", model_format, 32, 64, NULL, &part, err);
    return st ? st : part.format ? TURBO_OK : TURBO_ENOENT;
}

static void test_sound(void **s)
{
    (void)s;
    turbo_err err;
    for (int k = 0; k < SETS; k++) {
        if (with(k, -1, NULL, NULL, NULL, "", &err))
            fail_msg("set %d: %s", k, err.text);
        if (with(k, -1, NULL, NULL, NULL, sound[k].format, &err))
            fail_msg("set %d by its name: %s", k, err.text);
    }
}

/* Every tensor of a set missing, in another type, of another shape. */
static void test_each_tensor(void **s)
{
    (void)s;
    static const entry none = {.fill = NONE};
    turbo_err err;
    for (int k = 0; k < SETS; k++)
        for (int i = 0; i < 7 && sound[k].t[i].name; i++) {
            const entry *e = &sound[k].t[i];
            static const char *const optional[] = {"m.weight_shape", "m.weight_format", "m.g_idx",
                                                   "m.weight_g_idx"};
            bool may_miss = k == PACKED && i == 3;
            for (size_t o = 0; o < 4; o++)
                may_miss |= !strcmp(e->name, optional[o]);
            turbo_status st = with(k, i, &none, NULL, NULL, "", &err);
            /* without its codes a matrix is not there; only its scales and zeros say that it should be */
            if (may_miss ? st != TURBO_OK : st == TURBO_OK)
                fail_msg("set %d without %s: status %d, %s", k, e->name, st, err.text);
            entry other = *e;
            other.dtype = strcmp(e->dtype, "F64") ? "F64" : "I16";
            other.fill = ZERO;
            st = with(k, i, &other, NULL, NULL, "", &err);
            if (st == TURBO_OK)
                fail_msg("set %d: %s as %s was taken", k, e->name, other.dtype);
            other = *e;
            other.d0 = e->d0 > 0 ? e->d0 + 1 : 2;
            if (e->fill == STATE || !strcmp(e->name, "m.weight_format"))
                continue;
            st = with(k, i, &other, NULL, NULL, "", &err);
            if (st != TURBO_EDATA || !strstr(err.text, e->name))
                fail_msg("set %d: %s with one row more: status %d, %s", k, e->name, st, err.text);
            other = *e;
            other.d1 = e->d1 > 1 ? e->d1 + 1 : 3;
            st = with(k, i, &other, NULL, NULL, "", &err);
            if (st != TURBO_EDATA || !strstr(err.text, e->name))
                fail_msg("set %d: %s with one column more: status %d, %s", k, e->name, st,
                         err.text);
        }
}

#define GROUP0(weights) "\"config_groups\":{\"group_0\":{\"weights\":{" weights "}}}"
#define CT(more) "{\"quant_method\":\"compressed-tensors\"," more "}"
static const entry zero_scale = {"m.scales", "F16", 2, 32, ZERO},
                   inf_scale = {"m.scales", "F16", 2, 32, HALF_INF},
                   nan_scale = {"m.scales", "F16", 2, 32, HALF_NAN},
                   plain = {"m.weight", "F16", 32, 64, HALF},
                   three = {"m.scales", "F16", 3, 32, HALF},
                   eight = {"m.scales", "F16", 8, 32, HALF},
                   wide_nan = {"m.weight_scale_inv", "F32", 2, 2, WIDE_NAN},
                   zero_wide = {"m.weight_scale_inv", "F32", 2, 2, ZERO},
                   nan_codes = {"m.weight", "F8_E4M3", 32, 64, ONES},
                   no_number = {"m_scales", "U8", 32, 2, ONES},
                   order = {"m.g_idx", "I32", 64, -1, ZERO}, far = {"m.g_idx", "I32", 64, -1, ONES},
                   zeros_256 = {"m.qzeros", "I32", 2, 8, ONES},
                   packed = {"m.weight_packed", "I32", 32, 8, ONES},
                   tiles = {"m.weight_format", "U8", -1, -1, ONES},
                   outer_nan = {"m.weight.nested_absmax", "F32", 1, -1, WIDE_NAN},
                   map_nan = {"m.weight.quant_map", "F32", 16, -1, WIDE_NAN},
                   absent = {.fill = NONE}, zero_brain = {"m.weight_scale", "BF16", 32, 1, ZERO};
static const struct {
    int set, i;
    const entry *other, *more;
    const char *config, *model_format;
    turbo_status st;
    const char *says;
} refused[] = {
    {AWQ, 2, &zero_scale, NULL, NULL, "", TURBO_EDATA, "m.scales: scale 0 is zero"},
    {AWQ, 2, &inf_scale, NULL, NULL, "", TURBO_EDATA, "m.scales: scale 32 is NaN or infinite"},
    {GPTQ, 2, &nan_scale, NULL, NULL, "", TURBO_EDATA, "m.scales: scale 32"},
    {INT8, 1, &zero_brain, NULL, NULL, "", TURBO_EDATA, "m.weight_scale: scale 0 is zero"},
    {FP8, 1, &wide_nan, NULL, NULL, "", TURBO_EDATA, "m.weight_scale_inv: scale 2"},
    {FP8, 1, &zero_wide, NULL, NULL, "", TURBO_EDATA, "zero"},
    {FP8, 0, &nan_codes, NULL, NULL, "", TURBO_EDATA, "m.weight holds NaN"},
    {MXFP4, 1, &no_number, NULL, NULL, "", TURBO_EDATA, "m_scales: scale 0 is no number"},
    {NF4, 3, &outer_nan, NULL, NULL, "", TURBO_EDATA, "nested_absmax: scale 0"},
    {NF4, 2, &map_nan, NULL, NULL, "", TURBO_EDATA, "quant_map: scale 8"},
    {LLM8, 2, &tiles, NULL, NULL, "", TURBO_EUNSUPPORTED, "tiles of a GPU"},
    {AWQ, 2, &three, NULL, NULL, "", TURBO_EDATA, "3 groups, which do not divide the 64 inputs"},
    {AWQ, 2, &eight, NULL, "{\"quant_method\":\"awq\"}", "", TURBO_EUNSUPPORTED,
     "groups of 8 inputs; a multiple of 16"},
    {AWQ, -1, NULL, NULL, "{\"quant_method\":\"awq\",\"group_size\":64}", "", TURBO_EDATA,
     "groups of 32 inputs, quantization_config says 64"},
    {GPTQ, 3, &order, NULL, NULL, "", TURBO_EDATA, "m.g_idx: group 0 has more than 32 inputs"},
    {GPTQ, 3, &far, NULL, NULL, "", TURBO_EDATA, "m.g_idx: input 0 is in group -1 of 2"},
    {GPTQ8, 1, &zeros_256, NULL, NULL, "", TURBO_EDATA, "a zero does not fit into 8 bits"},
    {GPTQ, -1, NULL, NULL, "{\"quant_method\":\"gptq\",\"bits\":8}", "", TURBO_EDATA,
     "codes of 4 bits, quantization_config says 8"},
    {AWQ, -1, NULL, &plain, NULL, "", TURBO_EDATA, "m.qweight is a second form of m.weight"},
    {AWQ, -1, NULL, &packed, NULL, "", TURBO_EDATA,
     "m.weight_packed is a second form of m.qweight"},
    {PACKED, -1, NULL, NULL, sound[AWQ].config, "", TURBO_EDATA,
     "m is stored as compressed-tensors, quantization_config says awq"},
    {AWQ, -1, NULL, NULL, NULL, "gptq", TURBO_EDATA, "m.qweight does not have the shape that GPTQ"},
    {AWQ, -1, NULL, NULL, NULL, "hf", TURBO_EDATA, "m is stored as awq"},
    {AWQ, -1, NULL, NULL, NULL, "gguf2", TURBO_EINVAL, "model_format is \"gguf2\"; use hf, awq"},
    {AWQ, -1, NULL, NULL, "{\"quant_method\":\"awq\",\"modules_to_not_convert\":[\"m\"]}", "",
     TURBO_EDATA, "m is in quantization_config.modules_to_not_convert"},
    {PACKED, -1, NULL, NULL, CT("\"ignore\":[\"a\",\"m\"]"), "", TURBO_EDATA,
     "quantization_config.ignore"},
    {AWQ, -1, NULL, NULL, "{\"quant_method\":\"awq\",\"version\":\"gemv\"}", "", TURBO_EUNSUPPORTED,
     "version is \"gemv\""},
    {AWQ, -1, NULL, NULL, "{\"quant_method\":\"awq\",\"bits\":3}", "", TURBO_EUNSUPPORTED,
     "AWQ in 3 bits"},
    {AWQ, -1, NULL, NULL, "{\"quant_method\":\"hqq\"}", "", TURBO_EUNSUPPORTED,
     "quant_method is \"hqq\""},
    {GPTQ, -1, NULL, NULL, "{\"quant_method\":\"gptq\",\"checkpoint_format\":\"marlin\"}", "",
     TURBO_EUNSUPPORTED, "checkpoint_format is \"marlin\""},
    {PACKED, -1, NULL, NULL, CT("\"format\":\"nvfp4-pack-quantized\""), "", TURBO_EUNSUPPORTED,
     "nvfp4-pack-quantized"},
    {GPTQ, -1, NULL, NULL, "{\"quant_method\":\"gptq\",\"bits\":1e99}", "", TURBO_EDATA, "bits"},
    {GPTQ, -1, NULL, NULL, "{\"quant_method\":7}", "", TURBO_EDATA, "quant_method"},
    {GPTQ, -1, NULL, NULL, "{\"quant_method\":\"gptq\",\"group_size\":\"x\"}", "", TURBO_EDATA,
     "group_size"},
    {GPTQ, 3, &absent, NULL, "{\"quant_method\":\"gptq\",\"desc_act\":true,\"group_size\":32}", "",
     TURBO_EDATA, "m.g_idx is missing, which config.json announces (desc_act)"},
    {PACKED, 3, &absent, NULL, CT(GROUP0("\"symmetric\":false")), "", TURBO_EDATA,
     "m.weight_zero_point is missing, which config.json announces"},
    {PACKED, 4, &absent, NULL, CT(GROUP0("\"actorder\":\"group\"")), "", TURBO_EDATA,
     "m.weight_g_idx is missing"},
    {INT8, -1, NULL, NULL, CT(GROUP0("\"symmetric\":false")), "", TURBO_EDATA,
     "m.weight_zero_point is missing"},
    {INT8, -1, NULL, NULL, NULL, "awq", TURBO_EDATA, "stored as int8, model_format says awq"},
    {FP8, -1, NULL, NULL, "{\"quant_method\":\"fp8\",\"weight_block_size\":[0,0]}", "", TURBO_EDATA,
     "weight_block_size"},
};

static void test_refused(void **s)
{
    (void)s;
    turbo_err err;
    for (size_t r = 0; r < sizeof refused / sizeof refused[0]; r++) {
        turbo_status st = with(refused[r].set, refused[r].i, refused[r].other, refused[r].more,
                               refused[r].config, refused[r].model_format, &err);
        if (st != refused[r].st || !strstr(err.text, refused[r].says))
            fail_msg("row %zu: status %d, \"%s\"; wanted %d, \"%s\"", r, st, err.text,
                     refused[r].st, refused[r].says);
    }
    /* names of lists are whole components */
    assert_int_equal(
        with(AWQ, -1, NULL, NULL,
             "{\"quant_method\":\"awq\",\"modules_to_not_convert\":[\"a.m\",\"mm\",\"\"]}", "",
             &err),
        TURBO_OK);
}

/* The size from which inputs are multiplied in full precision, of the folder, comes to the kernel. */
static void test_outliers(void **s)
{
    (void)s;
    static const struct {
        const char *config;
        float want;
    } cases[] = {
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true}", 6},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true,\"llm_int8_threshold\":3.5}",
         3.5f},
        {"{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true,\"llm_int8_threshold\":0}", 0},
        {NULL, 6}, /* by its tensors alone */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        turbod_quant_part part;
        turbo_err err;
        st_file f = {0};
        for (int k = 0; sound[LLM8].t[k].name; k++)
            add(&f, &sound[LLM8].t[k]);
        st_write(&f, folder);
        put_config(cases[i].config);
        if (look("m", "", 32, 64, NULL, &part, &err))
            fail_msg("case %zu: %s", i, err.text);
        if (part.grid.outlier < cases[i].want || part.grid.outlier > cases[i].want)
            fail_msg("case %zu: inputs from %g on, not %g", i, (double)part.grid.outlier,
                     (double)cases[i].want);
    }
}

/* The JSON inside a tensor of bitsandbytes. */
static void test_states(void **s)
{
    (void)s;
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "{\"blocksize\":64}",
        "{\"blocksize\":0,\"shape\":[32,64]}",
        "{\"blocksize\":\"x\",\"shape\":[32,64]}",
        "{\"blocksize\":64,\"shape\":[64,32]}",
        "{\"blocksize\":64,\"shape\":32}",
        "{\"blocksize\":128,\"shape\":[32,64]}",
        "{\"blocksize\":64,\"shape\":[32,64],\"nested_blocksize\":0}",
        "{\"blocksize\":64,\"shape\":[32,64],\"nested_blocksize\":8}",
        "{\"blocksize\":64,\"shape\":[32,64],\"nested_offset\":1e300}",
        "{\"blocksize\":64,\"shape\":[-32,-64]}",
    };
    const char *good = state;
    turbo_err err;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        state = bad[i];
        if (with(NF4, -1, NULL, NULL, NULL, "", &err) == TURBO_OK || !*err.text)
            fail_msg("taken: %s", bad[i]);
    }
    state = good;
    assert_int_equal(with(NF4, -1, NULL, NULL, NULL, "", &err), TURBO_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),   cmocka_unit_test(test_sound),
        cmocka_unit_test(test_each_tensor), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_states),      cmocka_unit_test(test_outliers),
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
