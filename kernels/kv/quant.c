/* kernels/kv/quant.c: where codes, scales and zeros of a quantised plane lie (K or V of one layer and
 * head in one block); internal.h draws it. Threads: as the pool's. Must not know attention. */
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "internal.h"

#define PAR 2 /* bytes of a scale, and of a zero */

static size_t code_bytes(const turbok_kv_dims *d)
{
    size_t n = (size_t)d->block_tokens * (size_t)d->head_dim;
    return d->dtype == TURBOK_KV_INT8 ? n : n / 2;
}

size_t turbok_kv_plane_bytes(const turbok_kv_dims *d)
{
    if (turbok_kv_coded(d->dtype))
        return code_bytes(d) + 2 * PAR * (size_t)d->block_tokens;
    return (size_t)d->block_tokens * (size_t)d->head_dim * turbok_dtype_size(d->dtype);
}

/* Dim i of an int4 value: its byte and the bit where it begins. */
static size_t nibble(size_t D, size_t i, int *shift)
{
    size_t tile = i / TURBOK_TILE * TURBOK_TILE, lane = i - tile;
    size_t half = (D - tile < TURBOK_TILE ? D - tile : TURBOK_TILE) / 2;
    *shift = lane < half ? 0 : 4;
    return tile / 2 + (lane < half ? lane : lane - half);
}

void turbok_kv_code(const turbok_prim *prim, const turbok_kv_dims *d, char *plane, bool value,
                    int32_t slot, const float *in, uint8_t *tmp)
{
    size_t D = (size_t)d->head_dim, bt = (size_t)d->block_tokens, at = (size_t)slot;
    bool wide = d->dtype == TURBOK_KV_INT8;
    uint8_t *codes = (uint8_t *)plane;
    uint16_t par[2];
    prim->quantize(wide ? 8 : 4, in, (int64_t)D, tmp, par);
    memcpy(plane + code_bytes(d) + PAR * at, &par[0], PAR);
    memcpy(plane + code_bytes(d) + PAR * (bt + at), &par[1], PAR);
    if (value && wide) {
        memcpy(codes + at * D, tmp, D);
    } else if (value) {
        for (size_t tile = 0; tile < D; tile += TURBOK_TILE) {
            size_t half = (D - tile < TURBOK_TILE ? D - tile : TURBOK_TILE) / 2;
            for (size_t i = 0; i < half; i++)
                codes[at * (D / 2) + tile / 2 + i] =
                    (uint8_t)(tmp[tile + i] | tmp[tile + half + i] << 4);
        }
    } else if (wide) {
        for (size_t i = 0; i < D; i++)
            codes[i * bt + at] = tmp[i];
    } else {
        for (size_t i = 0; i < D / 2; i++)
            codes[i * bt + at] = (uint8_t)(tmp[2 * i] | tmp[2 * i + 1] << 4);
    }
}

void turbok_kv_key_codes(const turbok_kv_dims *d, const char *plane, int32_t i, int32_t slot,
                         int32_t n, float *out)
{
    bool wide = d->dtype == TURBOK_KV_INT8;
    const uint8_t *row = (const uint8_t *)plane +
                         (size_t)(wide ? i : i / 2) * (size_t)d->block_tokens + (size_t)slot;
    int shift = wide ? 0 : 4 * (i % 2), mask = wide ? 255 : 15;
    for (int32_t t = 0; t < n; t++)
        out[t] = (float)(row[t] >> shift & mask);
}

void turbok_kv_value_codes(const turbok_kv_dims *d, const char *plane, int32_t slot, float *out)
{
    size_t D = (size_t)d->head_dim;
    bool wide = d->dtype == TURBOK_KV_INT8;
    const uint8_t *row = (const uint8_t *)plane + (size_t)slot * (wide ? D : D / 2);
    for (size_t i = 0; i < D; i++) {
        int shift = 0;
        size_t at = wide ? i : nibble(D, i, &shift);
        out[i] = (float)(row[at] >> shift & (wide ? 255 : 15));
    }
}

void turbok_kv_params(const turbok_prim *prim, const turbok_kv_dims *d, const char *plane,
                      int32_t slot, int32_t n, float *scale, float *zero)
{
    const char *par = plane + code_bytes(d) + PAR * (size_t)slot;
    prim->widen(TURBO_BF16, par, n, scale);
    prim->widen(TURBO_BF16, par + PAR * (size_t)d->block_tokens, n, zero);
}

void turbok_kv_row(const turbok_kv_dims *d, const char *plane, bool value, int32_t slot, float *out)
{
    float scale, zero;
    turbok_kv_params(&turbok_prim_scalar, d, plane, slot, 1, &scale, &zero);
    if (value)
        turbok_kv_value_codes(d, plane, slot, out);
    for (int32_t i = 0; i < d->head_dim; i++) {
        if (!value)
            turbok_kv_key_codes(d, plane, i, slot, 1, &out[i]);
        out[i] = fmaf(scale, out[i], zero);
    }
}
