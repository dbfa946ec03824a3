/* kernels/simd/encode_body.h: the primitive `encode` for vectors, behind body.h: what cpu/encode.c computes, to the
 * bit. Of 8 bits a vector is VW numbers of a group; of 4 bits VW groups, because sums of errors are chains. */

#define ENCODE_MOST 128 /* numbers of a group of 4 bits; longer ones are the reference's */

ALWAYS vf nearest(vf v, float least, float most)
{
    v = pick(v > splat(most), splat(most), pick(v < splat(least), splat(least), v));
    return v + splat(12582912.0f) - splat(12582912.0f);
}

static void encode_8(bool rounded, const float *w, int64_t n, uint8_t *codes, float *scale)
{
    typedef uint8_t vb __attribute__((vector_size(VW)));
    vf all = {0};
    for (int64_t i = 0; i < n; i += VW) {
        vf v = (vf)((vi)load(w + i) & 0x7fffffff);
        all = pick(v > all, v, all);
    }
    float most = 0;
    for (int l = 0; l < VW; l++)
        most = all[l] > most ? all[l] : most;
    float s = most / 127.0f;
    if (rounded)
        s = turbok_bf16_to_f32(turbok_bf16_above(s));
    float inverse = s == 0.0f ? 0.0f : 1.0f / s;
    for (int64_t i = 0; i < n; i += VW) {
        vi c = __builtin_convertvector(nearest(load(w + i) * splat(inverse), -128, 127), vi);
        vb b = __builtin_convertvector(c + 128, vb);
        memcpy(codes + i, &b, sizeof b);
    }
    *scale = s;
}

ALWAYS vf as_bf16(vf v)
{
    for (int l = 0; l < VW; l++)
        v[l] = turbok_bf16_to_f32(turbok_f32_to_bf16(v[l]));
    return v;
}

ALWAYS vf inverse_of(vf s)
{
    return pick(s == (vf){0}, (vf){0}, splat(1.0f) / s);
}

/* VW groups: number i of lane l is w[l * n + i]. */
static void encode_4(const float *w, int64_t n, uint8_t *codes, float *scale)
{
    static const float ends[] = TURBOK_ENCODE_ENDS;
    vf turned[ENCODE_MOST], most = {0}, s = {0}, best = splat(INFINITY);
    for (int64_t i = 0; i < n; i++) {
        vf v = {0};
        for (int l = 0; l < VW; l++)
            v[l] = w[l * n + i];
        turned[i] = v;
        most = pick((vf)((vi)v & 0x7fffffff) > (vf)((vi)most & 0x7fffffff), v, most);
    }
    vi some = most != (vf){0};
    for (int k = 0; k < 4; k++) {
        vf plain = most / splat(ends[k]), t = as_bf16(plain);
        for (int fit = 0; fit < 2; fit++) {
            vf inverse = inverse_of(t), error = {0}, up = {0}, down = {0};
            for (int64_t i = 0; i < n; i++) {
                vf v = turned[i], c = nearest(v * inverse, -8, 7), e = v - c * t;
                error = error + e * e;
                up = up + v * c;
                down = down + c * c;
            }
            vi better = (error < best) & some;
            s = pick(better, t, s);
            best = pick(better, error, best);
            t = as_bf16(pick(down > (vf){0}, up / down, plain));
        }
    }
    vf inverse = inverse_of(s);
    for (int64_t i = 0; i < n; i++) {
        vi c = __builtin_convertvector(nearest(turned[i] * inverse, -8, 7), vi) + 8;
        for (int l = 0; l < VW; l++)
            codes[l * n + i] = (uint8_t)c[l];
    }
    store(scale, s);
}

static void encode(int bits, bool rounded, const float *w, int64_t groups, int64_t group,
                   uint8_t *codes, float *scale)
{
    int64_t g = 0;
    if (bits == 8 && group % VW == 0)
        for (; g < groups; g++)
            encode_8(rounded, w + g * group, group, codes + g * group, scale + g);
    else if (bits == 4 && group <= ENCODE_MOST)
        for (; g + VW <= groups; g += VW)
            encode_4(w + g * group, group, codes + g * group, scale + g);
    turbok_prim_scalar.encode(bits, rounded, w + g * group, groups - g, group, codes + g * group,
                              scale + g);
}
