/* core/weights/quant/assume.c: the form a matrix will have by what config.json says, for a plan that is made before
 * there are weight files. Any thread. Reads nothing but the config. */
#include "weights/quant/format.h"

/* A number or a truth of quantization_config; what is of another type counts as not said. */
static int64_t said(const turbod_quant *q, const char *path, int64_t otherwise)
{
    turbo_err none;
    int64_t v = otherwise;
    int32_t truth = 0;
    if (turbod_host_cfg_int(q->config, path, otherwise, INT32_MIN, INT32_MAX, &v, &none) &&
        !turbod_host_cfg_bool(q->config, path, (int32_t)otherwise, &truth, &none))
        v = truth;
    return v;
}

static const char *text_of(const turbod_quant *q, const char *path)
{
    turbo_err none;
    const char *text = NULL;
    return turbod_host_cfg_str(q->config, path, "", &text, &none) || !text ? "" : text;
}

/* Codes of a table, with fp32 scales. */
static turbok_grid with_table(int32_t bits, int64_t group)
{
    return (turbok_grid){.bits = bits,
                         .group = (int32_t)group,
                         .scale_dtype = TURBO_F32,
                         .table = QUANT_THERE};
}

static turbok_grid compressed(const turbod_quant *q, int64_t in)
{
    const char *format = text_of(q, "format");
    int64_t group = said(q, "config_groups.group_0.weights.group_size", -1);
    turbok_grid g = {.bits = (int32_t)said(q, "config_groups.group_0.weights.num_bits", 4),
                     .group = (int32_t)(group > 0 ? group : in),
                     .scale_dtype = TURBO_BF16};
    if (!strcmp(format, "float-quantized")) {
        g = with_table(8, in);
        g.scale_dtype = TURBO_BF16;
        return g;
    }
    if (!strcmp(format, "mxfp4-pack-quantized"))
        return with_table(4, 32);
    if (!strcmp(format, "int-quantized"))
        g.bits = 8;
    if (said(q, "config_groups.group_0.weights.symmetric", 1))
        g.offset = g.bits == 8 ? 128 : 8;
    else
        g.zero = QUANT_THERE;
    return g;
}

static turbok_grid form(const turbod_quant *q, int64_t in)
{
    int64_t group = q->group > 0 ? q->group : q->group < 0 ? in : 128, blocks = 128;
    turbok_grid g = {.bits = q->bits == 8 ? 8 : 4,
                     .group = (int32_t)group,
                     .scale_dtype = TURBO_F16,
                     .zero = QUANT_THERE};
    switch (q->method) {
    case METHOD_GPTQ: g.perm = said(q, "desc_act", 0) ? QUANT_THERE : NULL; return g;
    case METHOD_COMPRESSED: return compressed(q, in);
    case METHOD_BNB:
        if (said(q, "load_in_4bit", 0))
            return with_table(4, 64);
        return (turbok_grid){.bits = 8,
                             .group = (int32_t)in,
                             .scale_dtype = TURBO_F32,
                             .offset = 128,
                             .outlier = q->outlier};
    case METHOD_FP8:
        while (in % blocks) /* as fp8.c has it */
            blocks /= 2;
        return with_table(8, said(q, "weight_block_size.1", 0) ? blocks : in);
    case METHOD_MXFP4: return with_table(4, 32);
    case METHOD_INT8:
        return (
            turbok_grid){.bits = 8, .group = (int32_t)in, .scale_dtype = TURBO_F32, .offset = 128};
    default: return g;
    }
}

bool turbod_quant_assume(const turbod_quant *q, const char *base, int64_t in, turbok_grid *g)
{
    if (!q->config || q->method == METHOD_ANY || q->method == METHOD_HF || in > INT32_MAX ||
        quant_left_alone(q, base))
        return false;
    *g = form(q, in);
    return in % g->group == 0 && (g->group % 16 == 0 || g->group == in) && in % 2 == 0;
}
