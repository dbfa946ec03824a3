/* kernels/simd/encode_body.h: the primitive `encode` for vectors, behind body.h: what cpu/encode.c computes, to the
 * bit. Of 8 bits a vector is VW numbers of a group; of 4 bits VW groups, because sums of errors are chains. */

#define ENCODE_MOST 128 /* numbers of a group of 4 bits; longer ones are the reference's */

/* Behind smaller() and larger() of an instruction set, which give the second where one is NaN, and store_u8(). */
ALWAYS vf nearest(vf v, float least, float most)
{
    v = larger(splat(least), smaller(splat(most), v));
    return v + splat(12582912.0f) - splat(12582912.0f);
}

/* Of all lanes: halves, quarters ... change places. gcc's __builtin_shuffle would say it shorter, clang has none. */
ALWAYS float largest(vf v)
{
#if VW == 16
    v = larger(v,
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = larger(v,
               __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = larger(v,
               __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = larger(v,
               __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif VW == 8
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    v = larger(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
#elif VW == 4
    v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
    v = larger(v, __builtin_shufflevector(v, v, 1, 0, 3, 2));
#else
#error "largest: a list for vectors of VW floats"
#endif
    return v[0];
}

static void encode_8(bool rounded, const float *w, int64_t n, uint8_t *codes, float *scale)
{
    vf all = {0};
    for (int64_t i = 0; i < n; i += VW)
        all = larger((vf)((vi)load(w + i) & 0x7fffffff), all);
    float s = largest(all) / 127.0f;
    if (rounded)
        s = turbok_bf16_to_f32(turbok_bf16_above(s));
    float inverse = s == 0.0f ? 0.0f : 1.0f / s;
    for (int64_t i = 0; i < n; i += VW) {
        vi c = __builtin_convertvector(nearest(load(w + i) * splat(inverse), -128, 127), vi);
        store_u8(codes + i, (c + 128) & 255);
    }
    *scale = s;
}

/* Rounded to nearest even; NaN stays NaN. */
ALWAYS vf as_bf16(vf v)
{
    vi u = (vi)v, odd = (u >> 16) & 1;
    return pick(v != v, (vf)((u | 0x400000) & -0x10000), (vf)((u + 0x7fff + odd) & -0x10000));
}

ALWAYS vf inverse_of(vf s)
{
    return pick(s == (vf){0}, (vf){0}, splat(1.0f) / s);
}

/* Sums over the numbers of VW groups with scales t: of squared errors and, if asked for, those that a fit needs. */
ALWAYS vf try_scales(const float *turned, int64_t n, vf t, bool fit, vf *up, vf *down)
{
    vf inverse = inverse_of(t), error = {0}, above = {0}, below = {0};
    for (int64_t i = 0; i < n; i++) {
        vf v = load(turned + i * VW), c = nearest(v * inverse, -8, 7), e = v - c * t;
        error = error + e * e;
        if (fit) {
            above = above + v * c;
            below = below + c * c;
        }
    }
    *up = above;
    *down = below;
    return error;
}

/* VW groups: number i of lane l is w[l * n + i]. */
static void encode_4(const float *w, int64_t n, uint8_t *codes, float *scale)
{
    static const float ends[] = TURBOK_ENCODE_ENDS;
    float turned[ENCODE_MOST * VW];
    vf most = {0}, s = {0}, best = splat(INFINITY), up, down;
    for (int64_t l = 0; l < VW; l++)
        for (int64_t i = 0; i < n; i++)
            turned[i * VW + l] = w[l * n + i];
    for (int64_t i = 0; i < n; i++) {
        vf v = load(turned + i * VW);
        most = pick((vf)((vi)v & 0x7fffffff) > (vf)((vi)most & 0x7fffffff), v, most);
    }
    vi some = most != (vf){0}, far = (vf)((vi)most & 0x7fffffff) > splat(TURBOK_ENCODE_FAR);
    vf by = pick(far, splat(TURBOK_ENCODE_NEAR), splat(1));
    most = most * by;
    for (int64_t i = 0; i < n; i++)
        store(turned + i * VW, load(turned + i * VW) * by);
    for (int k = 0; k < 4; k++) {
        vf plain = most / splat(ends[k]), t = as_bf16(plain);
        for (int fit = 0; fit < 2; fit++) {
            vf error = fit ? try_scales(turned, n, t, false, &up, &down)
                           : try_scales(turned, n, t, true, &up, &down);
            vi better = (error < best) & some;
            s = pick(better, t, s);
            best = pick(better, error, best);
            if (!fit)
                t = as_bf16(pick(down > (vf){0}, up / down, plain));
        }
    }
    vf inverse = inverse_of(s);
    store(scale, s / by);
    for (int64_t l = 0; l < VW; l++)
        for (int64_t i = 0; i < n; i += VW) {
            vf c = nearest(load(w + l * n + i) * splat(by[l]) * splat(inverse[l]), -8, 7);
            store_u8(codes + l * n + i, (__builtin_convertvector(c, vi) + 8) & 255);
        }
}

static void encode(int bits, bool rounded, const float *w, int64_t groups, int64_t group,
                   uint8_t *codes, float *scale)
{
    int64_t g = 0;
    if (bits == 8 && group % VW == 0)
        for (; g < groups; g++)
            encode_8(rounded, w + g * group, group, codes + g * group, scale + g);
    else if (bits == 4 && group % VW == 0 && group <= ENCODE_MOST)
        for (; g + VW <= groups; g += VW)
            encode_4(w + g * group, group, codes + g * group, scale + g);
    turbok_prim_scalar.encode(bits, rounded, w + g * group, groups - g, group, codes + g * group,
                              scale + g);
}
