/* core/weights/quant/method.c: what a folder's config says about quantisation: the method, its numbers, and the
 * modules it leaves alone. Main thread. Must not know tensors. */
#include <stdio.h>
#include <stdlib.h>

#include "weights/gguf.h"
#include "weights/quant/format.h"

static const struct {
    const char *name;
    quant_method method;
} methods[] = {
    {"hf", METHOD_HF},
    {"awq", METHOD_AWQ},
    {"gptq", METHOD_GPTQ},
    {"compressed-tensors", METHOD_COMPRESSED},
    {"bitsandbytes", METHOD_BNB},
    {"fp8", METHOD_FP8},
    {"mxfp4", METHOD_MXFP4},
    {"int8", METHOD_INT8},
    {"fbgemm_fp8", METHOD_FP8},
    {"smooth_quant", METHOD_INT8},
};

static quant_method method_of(const char *name)
{
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
        if (!strcmp(name, methods[i].name))
            return methods[i].method;
    return METHOD_ANY;
}

/* quantization_config where a config may have it, or the file of its own that older GPTQ tools write. */
static turbo_status open_config(turbod_quant *q, const char *folder, turbo_err *err)
{
    static const char *const paths[] = {"quantization_config", "text_config.quantization_config",
                                        "llm_config.quantization_config", "compression_config"};
    static const char *const files[] = {"config.json", "quantize_config.json"};
    turbo_status st = TURBO_OK;
    turbo_err absent = {{0}};
    for (int f = 0; f < 2 && !st && !q->config; f++) {
        turbod_config_close(q->file);
        q->file = NULL;
        st = turbod_host_json_open(folder, files[f], &q->file, &absent);
        if (st == TURBO_ENOENT)
            st = TURBO_OK;
        else if (st)
            st = turbod_err(err, st, "%s", absent.text);
        else if (!st && f)
            st = turbod_host_cfg_sub(q->file, "", NULL, &q->config, err);
        for (size_t i = 0; i < 4 && !st && !f && q->file && !q->config; i++)
            if (turbod_host_cfg_has(q->file, paths[i]))
                st = turbod_host_cfg_sub(q->file, paths[i], NULL, &q->config, err);
    }
    return st;
}

static turbo_status unsupported(const char *key, const char *value, turbo_err *err)
{
    return turbod_err(
        err, TURBO_EUNSUPPORTED,
        "config.json: quantization_config.%s is \"%.40s\", which is not read; take the "
        "model as awq, gptq, compressed-tensors, bitsandbytes, fp8, mxfp4, or in bfloat16",
        key, value);
}

/* Layouts of a method that are another thing than its tensors' names say. */
static turbo_status check_layout(const turbod_quant *q, turbo_err *err)
{
    static const struct {
        quant_method method;
        const char *key, *known[9];
    } rows[] = {
        {METHOD_AWQ, "version", {"gemm", "GEMM", NULL}},
        {METHOD_GPTQ, "checkpoint_format", {"gptq", "gptq_v2", NULL}},
        {METHOD_COMPRESSED,
         "format",
         {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
          "mxfp4-pack-quantized", "mixed-precision", "dense", NULL}},
        {METHOD_FP8, "fmt", {"e4m3", "e5m2", "float8_e4m3fn", "float8_e5m2", NULL}},
    };
    const char *value = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].method != q->method)
            continue;
        turbo_status st =
            turbod_host_cfg_str(q->config, rows[i].key, rows[i].known[0], &value, err);
        size_t k = 0;
        while (!st && rows[i].known[k] && strcmp(rows[i].known[k], value))
            k++;
        if (st || !rows[i].known[k])
            return st ? st : unsupported(rows[i].key, value, err);
    }
    return TURBO_OK;
}

/* What config.json says under path, or "". */
static const char *text_of(const turbod_quant *q, const char *path)
{
    turbo_err none;
    const char *text = NULL;
    return turbod_host_cfg_str(q->config, path, "", &text, &none) || !text ? "" : text;
}

/* Of compressed-tensors: are inputs quantised to 8 bits of the kind of the weights, around 0, with a scale a token, a tensor
 * or a block? What is more particular is not said to a device. */
static bool compressed_inputs(const turbod_quant *q)
{
    enum { KINDS = 3 };
    static const char *const kinds[KINDS] = {"token", "tensor", "group"};
    const char *type = text_of(q, "config_groups.group_0.weights.type");
    const char *strategy = text_of(q, "config_groups.group_0.input_activations.strategy");
    turbo_err none;
    int64_t bits = 0, group = 0;
    int32_t symmetric = 0;
    int kind = 0;
    while (kind < KINDS && strcmp(kinds[kind], strategy))
        kind++;
    if (turbod_host_cfg_len(q->config, "config_groups") != 1 || kind == KINDS || !*type ||
        strcmp(type, text_of(q, "config_groups.group_0.input_activations.type")) ||
        turbod_host_cfg_int(q->config, "config_groups.group_0.input_activations.num_bits", 0, 0, 64,
                            &bits, &none) ||
        turbod_host_cfg_bool(q->config, "config_groups.group_0.input_activations.symmetric", 1,
                             &symmetric, &none) ||
        bits != 8 || !symmetric)
        return false;
    return strcmp(strategy, "group") ||
           (!turbod_host_cfg_int(q->config, "config_groups.group_0.input_activations.group_size", 0,
                                 0, 1 << 24, &group, &none) &&
            group == 128 && !strcmp(text_of(q, "config_groups.group_0.weights.strategy"), "block"));
}

/* Does the folder say that the inputs of its matrices are quantised as the matrices are? */
static bool inputs_coded(const turbod_quant *q)
{
    switch (q->method) {
    case METHOD_COMPRESSED: return compressed_inputs(q);
    case METHOD_FP8: return *text_of(q, "activation_scheme") != 0;
    case METHOD_INT8: return !strcmp(text_of(q, "quant_method"), "smooth_quant");
    default: return false;
    }
}

/* Tensors beside codes and scales that every matrix must have: without them the numbers would be others. */
static turbo_status read_companions(turbod_quant *q, turbo_err *err)
{
    int32_t act = 0, symmetric = 1;
    turbo_status st = TURBO_OK;
    if (q->method == METHOD_GPTQ)
        st = turbod_host_cfg_bool(q->config, "desc_act", 0, &act, err);
    q->reordered = act && q->group != -1 && !q->varies;
    if (st || q->method != METHOD_COMPRESSED ||
        turbod_host_cfg_len(q->config, "config_groups") != 1)
        return st;
    st = turbod_host_cfg_bool(q->config, "config_groups.group_0.weights.symmetric", 1, &symmetric,
                              err);
    q->asymmetric = !symmetric;
    q->reordered = !strcmp(text_of(q, "config_groups.group_0.weights.actorder"), "group");
    return st;
}

static turbo_status read_numbers(turbod_quant *q, turbo_err *err)
{
    const turbo_config *c = q->config;
    const char *format = NULL;
    int64_t bits = 0;
    double outlier = 6;
    bool packed = q->method == METHOD_AWQ || q->method == METHOD_GPTQ;
    turbo_status st = TURBO_OK;
    if (packed)
        st = turbod_host_cfg_int(c, "bits", 0, 2, 8, &bits, err);
    else if (q->method == METHOD_COMPRESSED && turbod_host_cfg_len(c, "config_groups") == 1)
        st = turbod_host_cfg_int(c, "config_groups.group_0.weights.num_bits", 0, 1, 16, &bits, err);
    if (!st && packed)
        st = turbod_host_cfg_int(c, "group_size", 0, -1, 1 << 24, &q->group, err);
    else if (!st && q->method == METHOD_COMPRESSED && turbod_host_cfg_len(c, "config_groups") == 1)
        st = turbod_host_cfg_int(c, "config_groups.group_0.weights.group_size", 0, -1, 1 << 24,
                                 &q->group, err);
    if (!st)
        st = turbod_host_cfg_num(c, "llm_int8_threshold", 6, 0, 1e30, &outlier, err);
    if (!st)
        st = turbod_host_cfg_str(c, "checkpoint_format", "", &format, err);
    if (st)
        return st;
    if (q->method == METHOD_AWQ && bits && bits != 4)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "config.json: AWQ in %lld bits is not read; 4 are", (long long)bits);
    q->varies = turbod_host_cfg_has(c, "dynamic");
    st = read_companions(q, err);
    if (st)
        return st;
    q->bits = (int32_t)bits;
    q->outlier = (float)outlier;
    q->zeros_as_stored = !strcmp(format, "gptq_v2");
    q->coded_inputs = inputs_coded(q);
    return TURBO_OK;
}

turbo_status turbod_quant_open(const char *folder, const char *model_format, turbod_quant **out,
                               turbo_err *err)
{
    turbod_quant *q = calloc(1, sizeof *q);
    const char *said = NULL;
    if (!q)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a quantisation config");
    q->outlier = 6;
    turbo_status st = folder && !turbod_gguf_is(folder) ? open_config(q, folder, err) : TURBO_OK;
    if (!st && q->config) {
        st = turbod_host_cfg_str(q->config, "quant_method", "", &said, err);
        q->method = st ? METHOD_ANY : method_of(said);
        if (!st && !*said && turbod_host_cfg_has(q->config, "bits"))
            q->method = METHOD_GPTQ; /* before tools wrote a method */
    }
    if (!st && model_format && *model_format) {
        q->method = method_of(model_format);
        q->overridden = true;
        if (folder && turbod_gguf_is(folder))
            st = turbod_err(
                err, TURBO_EINVAL,
                "model_format says how a folder is to be read; a GGUF file says it itself: "
                "remove model_format");
        else if (q->method == METHOD_ANY)
            st = turbod_err(err, TURBO_EINVAL,
                            "model_format is \"%.32s\"; use hf, awq, gptq, compressed-tensors, "
                            "bitsandbytes, fp8, mxfp4 or int8",
                            model_format);
    } else if (!st && said && *said && q->method == METHOD_ANY) {
        st = unsupported("quant_method", said, err);
    }
    for (size_t i = 0; i < sizeof methods / sizeof methods[0] && !q->method_name; i++)
        if (methods[i].method == q->method)
            q->method_name = methods[i].name;
    if (!st && q->config)
        st = check_layout(q, err);
    if (!st && q->config)
        st = read_numbers(q, err);
    if (st)
        turbod_quant_close(q);
    else
        *out = q;
    return st;
}

void turbod_quant_close(turbod_quant *q)
{
    if (!q)
        return;
    turbod_config_close(q->config);
    turbod_config_close(q->file);
    free(q);
}

/* Is key base itself, or whole components of it? */
static bool names(const char *key, const char *base)
{
    size_t n = strlen(key);
    for (const char *at = n ? strstr(base, key) : NULL; at; at = strstr(at + 1, key))
        if ((at == base || at[-1] == '.') && (!at[n] || at[n] == '.'))
            return true;
    return false;
}

const char *quant_left_alone(const turbod_quant *q, const char *base)
{
    static const char *const lists[] = {"modules_to_not_convert", "ignore", "ignored_layers",
                                        "llm_int8_skip_modules"};
    char path[64];
    turbo_err none;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0] && q->config; i++) {
        int64_t n = turbod_host_cfg_len(q->config, lists[i]);
        for (int64_t k = 0; k < n; k++) {
            const char *key = NULL;
            snprintf(path, sizeof path, "%s.%lld", lists[i], (long long)k);
            if (!turbod_host_cfg_str(q->config, path, NULL, &key, &none) && key && names(key, base))
                return lists[i];
        }
    }
    return NULL;
}
