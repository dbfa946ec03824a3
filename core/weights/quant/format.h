/* core/weights/quant/format.h: what the formats share; for this folder only. */
#ifndef TURBOD_QUANT_FORMAT_H
#define TURBOD_QUANT_FORMAT_H

#include <string.h>

#include "util/err.h"
#include "weights/config.h"
#include "weights/quant/quant.h"

extern const turbod_quant_format turbod_quant_awq, turbod_quant_gptq, turbod_quant_packed,
    turbod_quant_int8, turbod_quant_llm_int8, turbod_quant_fp8, turbod_quant_bnb4,
    turbod_quant_mxfp4, turbod_quant_gguf;

typedef enum { /* what quantization_config calls the method */
               METHOD_ANY, /* says nothing */
               METHOD_HF, /* nothing is quantised */
               METHOD_AWQ,
               METHOD_GPTQ,
               METHOD_COMPRESSED,
               METHOD_BNB,
               METHOD_FP8,
               METHOD_MXFP4,
               METHOD_INT8
} quant_method;

struct turbod_quant {
    turbo_config *file, *config; /* config.json, and its quantization_config; NULL: none */
    quant_method method;
    const char *method_name;
    int32_t bits; /* 0: not said */
    int64_t group; /* 0: not said, -1: a row */
    bool zeros_as_stored; /* GPTQ of the second version */
    bool asymmetric; /* compressed-tensors: every matrix has zeros */
    bool reordered; /* every matrix has the groups of its inputs, in g_idx */
    bool overridden; /* method is model_format's */
    bool varies; /* bits and group may differ from matrix to matrix */
    float outlier; /* LLM.int8 */
    bool coded_inputs; /* see turbok_grid */
};

/* base + suffix in the folder, or NULL. */
const turbod_st_tensor *quant_tensor(const turbod_index *ix, const char *base, const char *suffix);
/* The same for one that must be there, of that type (-1: F32, F16 or BF16) and shape [d0,d1]; d1 < 0: [d0]. */
turbo_status quant_need(const turbod_index *ix, const char *base, const char *suffix, int32_t dtype,
                        int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err);
turbo_status quant_typed(const turbod_st_tensor *t, int32_t dtype, turbo_err *err);
turbo_status quant_shaped(const turbod_st_tensor *t, int64_t d0, int64_t d1, turbo_err *err);
bool quant_has_shape(const turbod_st_tensor *t, int64_t d0, int64_t d1);
/* in inputs with one scale each span; sets p->span and grid.group. */
turbo_status quant_group(turbod_quant_part *p, const turbod_st_tensor *t, int64_t span,
                         turbo_err *err);
/* n groups along in; also against what the config says. */
turbo_status quant_groups(const turbod_quant *q, turbod_quant_part *p, const turbod_st_tensor *t,
                          uint64_t n, turbo_err *err);
/* g_idx [in]: *ordered when input k belongs to group k / span; TURBO_EDATA when the groups differ in size. */
turbo_status quant_g_idx(const turbod_quant_part *p, const turbod_st_tensor *t, bool *ordered,
                         turbo_err *err);
/* Inputs in the order of their groups. */
void quant_perm(const turbod_quant_part *p, const turbod_st_tensor *t, int32_t *perm);

/* EDATA: the config says that base has a tensor of that suffix, and t is NULL. */
turbo_status quant_announced(const turbod_st_tensor *t, bool said, const char *key,
                             const char *base, const char *suffix, turbo_err *err);

/* The list of quantization_config that says base is not quantised, or NULL. */
const char *quant_left_alone(const turbod_quant *q, const char *base);

extern const uint8_t quant_there[8]; /* what a pointer of a grid without data points to */
#define QUANT_THERE ((const void *)quant_there)

static inline uint32_t quant_u32(const uint8_t *p, int64_t i)
{
    uint32_t v;
    memcpy(&v, p + 4 * i, 4);
    return v;
}

static inline float quant_f32(const uint8_t *p, int64_t i)
{
    float v;
    memcpy(&v, p + 4 * i, 4);
    return v;
}

static inline int64_t quant_dtype_size(int32_t dtype)
{
    return dtype == TURBO_F32 ? 4 : 2;
}

/* Scales [N,G], [N,1], [N], or one number; sets span and scale_dtype. */
turbo_status quant_row_scales(const turbod_quant *q, turbod_quant_part *p,
                              const turbod_st_tensor *s, turbo_err *err);
/* Scales stored [groups,rows], to [rows,groups]. */
void quant_scale_columns(const turbod_quant_part *p, int64_t r0, int64_t r1,
                         const turbod_quant_rows *to);
/* Scales of tall rows and span inputs each, to [rows,groups]. */
void quant_scale_rows(const turbod_quant_part *p, int64_t r0, int64_t r1,
                      const turbod_quant_rows *to);

#endif
