/* tests/model/quant_folder.c: see quant_folder.h. Any bits are codes of something, so the codes are noise; only
 * scales, zeros and orders of inputs are made to make sense. */
#include "quant_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin/host.h"
#include "unit/st_file.h"
#include "weights/config.h"
#include "weights/quant/quant.h"

#define GROUP 32

static uint32_t seed = 1;

static uint32_t noise(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

/* base + suffix: n elements of size bytes each, of random bits. */
static void add_bits(st_file *f, const char *base, const char *suffix, const char *dtype,
                     int64_t d0, int64_t d1, int64_t d2, size_t size, uint32_t mask)
{
    char name[256];
    size_t n = (size_t)(d0 * (d1 < 0 ? 1 : d1) * (d2 > 0 ? d2 : 1)) * size;
    uint8_t *p = malloc(n + 4);
    for (size_t i = 0; i < n; i += 4) {
        uint32_t v = noise() & mask;
        memcpy(p + i, &v, 4);
    }
    snprintf(name, sizeof name, "%s%s", base, suffix);
    st_add(f, name, dtype, d0, d1, d2, p, n);
    free(p);
}

/* F32, F16 or BF16 numbers of about size. */
static void add_scales(st_file *f, const char *base, const char *suffix, const char *dtype,
                       int64_t d0, int64_t d1, float size)
{
    char name[256];
    size_t n = d0 < 0 ? 1 : (size_t)(d0 * (d1 < 0 ? 1 : d1)),
           width = dtype[0] == 'F' && dtype[1] == '3' ? 4 : 2;
    uint8_t *p = malloc(n * 4);
    for (size_t i = 0; i < n; i++) {
        float v = size * (0.5f + (float)(noise() >> 8) * 0x1p-24f);
        uint32_t u;
        memcpy(&u, &v, 4);
        uint16_t half = (uint16_t)(u >> 16);
        if (dtype[0] == 'F' && width == 2) /* all are normal in F16 */
            half = (uint16_t)(((u >> 23) - 112) << 10 | (u >> 13 & 0x3ff));
        memcpy(p + i * width, width == 4 ? (void *)&u : (void *)&half, width);
    }
    snprintf(name, sizeof name, "%s%s", base, suffix);
    st_add(f, name, dtype, d0, d1, 0, p, n * width);
    free(p);
}

static void add_awq(void *f, const char *base, int64_t N, int64_t K)
{
    add_bits(f, base, ".qweight", "I32", K, N / 8, 0, 4, ~0u);
    add_bits(f, base, ".qzeros", "I32", K / GROUP, N / 8, 0, 4, ~0u);
    add_scales(f, base, ".scales", "F16", K / GROUP, N, 0.02f);
}

/* order: 0 no g_idx beyond the obvious, 1 one order for all matrices of a width, 2 one for each. */
static void add_gptq(st_file *f, const char *base, int64_t N, int64_t K, int bits, int order)
{
    char name[256];
    int32_t *g = malloc((size_t)K * sizeof *g);
    uint32_t saved = seed;
    add_bits(f, base, ".qweight", "I32", K * bits / 32, N, 0, 4, ~0u);
    add_bits(f, base, ".qzeros", "I32", K / GROUP, N * bits / 32, 0, 4, 0x7f7f7f7fu);
    add_scales(f, base, ".scales", "F16", K / GROUP, N, bits == 8 ? 0.001f : 0.02f);
    for (int64_t k = 0; k < K; k++)
        g[k] = (int32_t)(k / GROUP);
    seed = order == 1 ? (uint32_t)K : saved;
    for (int64_t k = K - 1; k > 0 && order; k--) {
        int64_t j = noise() % (uint32_t)(k + 1);
        int32_t t = g[k];
        g[k] = g[j];
        g[j] = t;
    }
    seed = saved + 17;
    snprintf(name, sizeof name, "%s.g_idx", base);
    st_add(f, name, "I32", K, -1, 0, g, (size_t)K * 4);
    free(g);
}

static void add_gptq_4(void *f, const char *base, int64_t N, int64_t K)
{
    add_gptq(f, base, N, K, 4, 0);
}

static void add_gptq_8(void *f, const char *base, int64_t N, int64_t K)
{
    add_gptq(f, base, N, K, 8, 0);
}

static void add_gptq_order(void *f, const char *base, int64_t N, int64_t K)
{
    add_gptq(f, base, N, K, 4, 1);
}

static void add_gptq_orders(void *f, const char *base, int64_t N, int64_t K)
{
    add_gptq(f, base, N, K, 4, 2);
}

static void add_packed(void *f, const char *base, int64_t N, int64_t K)
{
    char name[256];
    int64_t shape[2] = {N, K};
    add_bits(f, base, ".weight_packed", "I32", N, K / 8, 0, 4, ~0u);
    add_scales(f, base, ".weight_scale", "BF16", N, K / GROUP, 0.02f);
    snprintf(name, sizeof name, "%s.weight_shape", base);
    st_add(f, name, "I64", 2, -1, 0, shape, sizeof shape);
}

static void add_packed_zero(void *f, const char *base, int64_t N, int64_t K)
{
    add_packed(f, base, N, K);
    add_bits(f, base, ".weight_zero_point", "I32", N / 8, K / GROUP, 0, 4, ~0u);
}

static void add_int8(void *f, const char *base, int64_t N, int64_t K)
{
    add_bits(f, base, ".weight", "I8", N, K, 0, 1, ~0u);
    add_scales(f, base, ".weight_scale", "BF16", N, 1, 0.001f);
}

static void add_llm_int8(void *f, const char *base, int64_t N, int64_t K)
{
    add_bits(f, base, ".weight", "I8", N, K, 0, 1, ~0u);
    add_scales(f, base, ".SCB", "F32", N, -1, 0.2f);
}

static void add_nf4(void *f, const char *base, int64_t N, int64_t K)
{
    char text[256], name[256];
    float map[16];
    int64_t blocks = N * K / 64;
    add_bits(f, base, ".weight", "U8", N * K / 2, 1, 0, 1, ~0u);
    add_bits(f, base, ".weight.absmax", "U8", blocks, -1, 0, 1, ~0u);
    add_scales(f, base, ".weight.nested_absmax", "F32", (blocks + 255) / 256, -1, 0.1f);
    add_scales(f, base, ".weight.nested_quant_map", "F32", 256, -1, 1);
    for (int i = 0; i < 16; i++)
        map[i] = (float)(i - 7) / 8;
    snprintf(name, sizeof name, "%s.weight.quant_map", base);
    st_add(f, name, "F32", 16, -1, 0, map, sizeof map);
    int n = snprintf(
        text, sizeof text,
        "{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"float32\",\"shape\":[%lld,%lld],"
        "\"nested_blocksize\":256,\"nested_dtype\":\"float32\",\"nested_offset\":0.02}",
        (long long)N, (long long)K);
    snprintf(name, sizeof name, "%s.weight.quant_state.bitsandbytes__nf4", base);
    st_add(f, name, "U8", n, -1, 0, text, (size_t)n);
}

static void add_fp8_blocks(void *f, const char *base, int64_t N, int64_t K)
{
    add_bits(f, base, ".weight", "F8_E4M3", N, K, 0, 1, 0xbfbfbfbfu); /* below 2 */
    add_scales(f, base, ".weight_scale_inv", "F32", (N + 127) / 128, (K + 127) / 128, 0.1f);
}

static void add_fp8(void *f, const char *base, int64_t N, int64_t K)
{
    add_bits(f, base, ".weight", "F8_E4M3", N, K, 0, 1, 0xbfbfbfbfu);
    add_scales(f, base, ".weight_scale", "F32", -1, -1, 0.1f);
}

static void add_mxfp4(void *f, const char *base, int64_t N, int64_t K)
{
    add_bits(f, base, "_blocks", "U8", N, K / 32, 16, 1, ~0u);
    add_bits(f, base, "_scales", "U8", N, K / 32, 0, 1, 0x78787878u); /* at most 2^-7 */
}

#define CT(symmetric)                                                                              \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{"   \
    "\"group_0\":"                                                                                 \
    "{\"weights\":{\"num_bits\":4,\"group_size\":32,\"symmetric\":" symmetric "}}}}"

const quant_case quant_cases[] = {
    {"awq", "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemm\"}",
     add_awq},
    {"gptq", "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}", add_gptq_4},
    {"gptq 8", "{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":32}", add_gptq_8},
    {"gptq, one order",
     "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":true}", add_gptq_order},
    {"gptq, own orders",
     "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":true}", add_gptq_orders},
    {"packed", CT("true"), add_packed},
    {"packed, zeros", CT("false"), add_packed_zero},
    {"int8", "{\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\"}", add_int8},
    {"LLM.int8", "{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true}", add_llm_int8},
    {"nf4", "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}", add_nf4},
    {"fp8 blocks", "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}", add_fp8_blocks},
    {"fp8", "{\"quant_method\":\"fp8\"}", add_fp8},
    {"mxfp4", "{\"quant_method\":\"mxfp4\"}", add_mxfp4},
};
const int n_quant_cases = sizeof quant_cases / sizeof quant_cases[0];

/* ---- folders ------------------------------------------------------------------------------------ */

typedef struct writer {
    st_file file;
    const quant_case *c; /* NULL: the plain folder */
    turbod_index *index; /* of the quantised one */
    turbod_quant *quant;
} writer;

static void add_plain(writer *w, const turbo_tensor_spec *s)
{
    bool norm = strstr(s->name, "norm") != NULL;
    int64_t rows = s->dims[0], cols = s->ndim > 1 ? s->dims[1] : 1;
    float *v = malloc((size_t)(rows * cols) * sizeof *v);
    for (int64_t i = 0; i < rows * cols; i++)
        v[i] = (norm ? 1.0f : 0.0f) + ((float)(noise() >> 8) * 0x1p-24f - 0.5f) * 0.3f;
    st_add(&w->file, s->name, "F32", rows, s->ndim > 1 ? cols : -1, 0, v,
           (size_t)(rows * cols) * 4);
    free(v);
}

/* What the quantised folder has there, as numbers. */
static void add_meaning(writer *w, const turbo_tensor_spec *s, const char *base)
{
    turbod_quant_part p = {0};
    turbok_grid g;
    turbo_err err;
    const turbod_st_tensor *t = turbod_index_find(w->index, s->name);
    if (s->ndim == 2 &&
        turbod_quant_find(w->quant, w->index, base, s->dims[0], s->dims[1], &p, &err))
        abort();
    if (!p.format) {
        if (!t)
            abort();
        st_add(&w->file, s->name, "F32", s->dims[0], s->ndim > 1 ? s->dims[1] : -1, 0, t->data,
               t->bytes);
        return;
    }
    if (turbod_quant_grid(&p, NULL, false, &g, &err))
        abort();
    float *v = malloc((size_t)(p.rows * p.in) * sizeof *v);
    for (int64_t o = 0; o < p.rows; o++)
        turbok_grid_row(&g, o, p.in, v + o * p.in);
    st_add(&w->file, s->name, "F32", p.rows, p.in, 0, v, (size_t)(p.rows * p.in) * 4);
    free(v);
    turbod_quant_grid_free(&g);
}

static turbo_status emit(void *ctx, const turbo_tensor_spec *s)
{
    writer *w = ctx;
    char base[256];
    snprintf(base, sizeof base, "%s", s->name);
    char *end = strstr(base, ".weight");
    if (end)
        *end = '\0';
    if (!w->c)
        add_meaning(w, s, base);
    else if (s->ndim == 2 && strstr(s->name, "layers"))
        w->c->add(&w->file, base, s->dims[0], s->dims[1]);
    else
        add_plain(w, s);
    return TURBO_OK;
}

static void make(const turbod_registry *registry, writer *w, const char *config, char *folder)
{
    char text[2048], path[128];
    turbo_config *c = NULL;
    const turbo_model_vtbl *v = NULL;
    turbo_err err = {{0}};
    strcpy(folder, "/tmp/turbo-quant-XXXXXX");
    if (!mkdtemp(folder))
        abort();
    int n = snprintf(text, sizeof text, "{%s%s%s}", config, w->c ? ",\"quantization_config\":" : "",
                     w->c ? w->c->quantization_config : "");
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(text, 1, (size_t)n, f) != (size_t)n || fclose(f) ||
        turbod_config_parse(text, (size_t)n, "config.json", &c, &err) ||
        turbod_registry_model_for(registry, c, &v, &err) ||
        v->expect(turbod_host_table(), c, emit, w, &err)) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    turbod_config_close(c);
    st_write(&w->file, folder);
}

void quant_folders(const turbod_registry *registry, const char *config, const quant_case *c,
                   char *quantised, char *plain)
{
    turbo_err err;
    writer w = {.c = c};
    seed = 12345;
    make(registry, &w, config, quantised);
    w.c = NULL;
    if (turbod_index_open(quantised, &w.index, &err) ||
        turbod_quant_open(quantised, "", &w.quant, &err))
        abort();
    make(registry, &w, config, plain);
    turbod_quant_close(w.quant);
    turbod_index_close(w.index);
}

void quant_folder_remove(const char *folder)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char path[128];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}
