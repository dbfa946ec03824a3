/* kernels/cuda/rows.cu: what goes row by row or number by number: embedding, norms, gather, activations,
 * sums, and the rows of pictures. Sums are fp32; a row is one block's, so its bits do not depend on others. */
#include "cuda/kernels.h"
#include "cuda/prims.cuh"

DEVICE int64_t thread_of_grid()
{
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
DEVICE int64_t threads_of_grid()
{
    return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

/* n numbers of a row of type T, by the whole block. */
template <class T> DEVICE void copy_row(const T *in, T *out, int64_t n)
{
    const int64_t wide = 16 / static_cast<int64_t>(sizeof(T));
    if (n % wide == 0) {
        for (int64_t i = threadIdx.x; i < n / wide; i += blockDim.x)
            store16(out + i * wide, load16(in + i * wide));
        return;
    }
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        out[i] = in[i];
}

/* What stands for a token, or for the row that draws it. What failed there is taken no further. */
DEVICE int64_t token_of(const turbok_cu_batch &b, int32_t id)
{
    if (id >= 0)
        return id;
    return b.drawn[~id] < 0 ? 0 : b.drawn[~id];
}

template <class T> DEVICE void embed_body(const struct turbok_cu_embed_args &a)
{
    grid_wait();
    int64_t t = blockIdx.x;
    T *out = static_cast<T *>(a.out) + t * a.E;
    int32_t row = a.b.embed_index ? a.b.embed_index[t] : -1;
    if (row >= 0)
        return copy_row(static_cast<const T *>(a.b.embed_rows) + row * a.E, out, a.E);
    int64_t at = token_of(a.b, a.b.tokens[t]) * a.E;
    for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x)
        out[i] = from_f<T>(element_of(a.dtype, a.table, at + i));
}
TURBOK_KERNEL_ACT(embed, 256, 4)

TURBOK_KERNEL(resolve, resolve, 256, 4)
{
    grid_wait();
    for (int64_t t = thread_of_grid(); t < a.b.T; t += threads_of_grid())
        a.tokens[t] = static_cast<int32_t>(token_of(a.b, a.b.tokens[t]));
}

/* Statistics of a row whose numbers each thread sees through each(f): f(value). */
template <class Each> DEVICE float2 statistics(bool layer, int64_t E, float *room, Each each)
{
    float sum = 0, squares = 0, mean = 0;
    if (layer) {
        each([&](float v) { sum += v; });
        mean = block_sum(sum, room) / static_cast<float>(E);
    }
    each([&](float v) { squares = fmaf(v - mean, v - mean, squares); });
    return make_float2(mean, block_sum(squares, room) / static_cast<float>(E));
}

template <class T> DEVICE void rmsnorm_body(const struct turbok_cu_rmsnorm_args &a)
{
    TURBOK_SHARED(float, room, 33);
    int64_t row = static_cast<int64_t>(blockIdx.x) * a.E, at = 8 * threadIdx.x;
    bool whole = a.E % 8 == 0 && a.E <= 8 * static_cast<int64_t>(blockDim.x), mine = at < a.E;
    float w[8], bias[8];
    grid_release();
    UNROLL
    for (int i = 0; i < 8; i++) { /* weights do not wait for the kernel before */
        w[i] = whole && mine ? a.w[at + i] : 0.0f;
        bias[i] = whole && mine && a.bias ? a.bias[at + i] : 0.0f;
    }
    grid_wait();
    T *h = static_cast<T *>(a.h) + row, *out = static_cast<T *>(a.out) + row;
    const T *delta = a.delta ? static_cast<const T *>(a.delta) + row : nullptr;
    if (whole) { /* the row stays in registers */
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0}, d[8];
        if (mine) {
            load8f(h + at, v);
            if (delta) {
                load8f(delta + at, d);
                UNROLL
                for (int i = 0; i < 8; i++)
                    v[i] = to_f(from_f<T>(v[i] + d[i]));
                store8f(h + at, v);
            }
        }
        float2 s = statistics(a.bias != nullptr, a.E, room, [&](auto f) {
            UNROLL
            for (int i = 0; i < 8; i++)
                if (mine)
                    f(v[i]);
        });
        if (!mine)
            return;
        float r = 1.0f / sqrtf(s.y + a.eps);
        UNROLL
        for (int i = 0; i < 8; i++)
            v[i] = w[i] * ((v[i] - s.x) * r) + bias[i];
        store8f(out + at, v);
        return;
    }
    if (delta)
        for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x)
            h[i] = from_f<T>(to_f(h[i]) + to_f(delta[i]));
    float2 s = statistics(a.bias != nullptr, a.E, room, [&](auto f) {
        for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x)
            f(to_f(h[i]));
    });
    float r = 1.0f / sqrtf(s.y + a.eps);
    for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x)
        out[i] = from_f<T>(a.w[i] * ((to_f(h[i]) - s.x) * r) + (a.bias ? a.bias[i] : 0.0f));
}
TURBOK_KERNEL_ACT(rmsnorm, 1024, 1)

/* The same for many rows of 16-bit numbers that a block's registers hold: less in them, more blocks at a time. */
template <class T> DEVICE void rmsnorm_rows_body(const struct turbok_cu_rmsnorm_args &a)
{
    TURBOK_SHARED(float, room, 33);
    const int64_t row = static_cast<int64_t>(blockIdx.x) * a.E, at = 8 * threadIdx.x;
    const bool mine = at < a.E;
    float w[8], v[8] = {0, 0, 0, 0, 0, 0, 0, 0}, squares = 0;
    grid_release();
    if (mine)
        load8f(a.w + at, w);
    grid_wait();
    T *h = static_cast<T *>(a.h) + row + at;
    if (mine) {
        load8f(h, v);
        if (a.delta) {
            float d[8];
            load8f(static_cast<const T *>(a.delta) + row + at, d);
            UNROLL
            for (int i = 0; i < 8; i++)
                v[i] = to_f(from_f<T>(v[i] + d[i]));
            store8f(h, v);
        }
    }
    UNROLL
    for (int i = 0; i < 8; i++)
        squares = fmaf(v[i], v[i], squares);
    const float r = 1.0f / sqrtf(block_sum(squares, room) / static_cast<float>(a.E) + a.eps);
    if (!mine)
        return;
    UNROLL
    for (int i = 0; i < 8; i++)
        v[i] = fmaf(w[i], v[i] * r, 0.0f);
    store8f(static_cast<T *>(a.out) + row + at, v);
}
TURBOK_KERNEL(rmsnorm_rows_f16, rmsnorm, TURBOK_CU_NORM_ROWS, 2)
{
    rmsnorm_rows_body<f16>(a);
}
TURBOK_KERNEL(rmsnorm_rows_bf16, rmsnorm, TURBOK_CU_NORM_ROWS, 2)
{
    rmsnorm_rows_body<bf16>(a);
}

template <class T> DEVICE void gather_body(const struct turbok_cu_gather_args &a)
{
    grid_wait();
    int64_t r = blockIdx.x;
    copy_row(static_cast<const T *>(a.in) + a.index[r] * a.E, static_cast<T *>(a.out) + r * a.E,
             a.E);
}
TURBOK_KERNEL_ACT(gather, 256, 4)

template <class T> DEVICE void activate_body(const struct turbok_cu_activate_args &a)
{
    grid_release();
    grid_wait();
    const T *gate = static_cast<const T *>(a.gate), *up = static_cast<const T *>(a.up);
    T *out = static_cast<T *>(a.out);
    int64_t wide = a.n / 8 * 8;
    if (reinterpret_cast<uintptr_t>(up) % 16 || (a.bias && a.width % 8))
        wide = 0;
    for (int64_t i = thread_of_grid() * 8; i < wide; i += threads_of_grid() * 8) {
        float v[8], u[8];
        load8f(gate + i, v);
        if (up)
            load8f(up + i, u);
        if (a.bias) {
            load8f(a.bias + i % a.width, u);
            UNROLL
            for (int k = 0; k < 8; k++)
                v[k] += u[k];
        }
        if (sizeof(T) == 2 && a.fn == 0) { /* SiLU, approximated beyond what 16 bits keep */
            UNROLL
            for (int k = 0; k < 8; k++)
                v[k] *= reciprocal_fast(1.0f + exp2_fast(v[k] * -1.44269504f)) * (up ? u[k] : 1.0f);
        } else {
            UNROLL
            for (int k = 0; k < 8; k++)
                v[k] = activation(a.fn, v[k]) * (up ? u[k] : 1.0f);
        }
        store8f(out + i, v);
    }
    for (int64_t i = wide + thread_of_grid(); i < a.n; i += threads_of_grid())
        out[i] = from_f<T>(
            activation(a.fn, to_f(gate[i]) + (a.bias ? a.bias[i % a.width] : 0.0f)) *
            (up ? to_f(up[i]) : 1.0f));
}
TURBOK_KERNEL_ACT(activate, 256, 4)

template <class T> DEVICE void add_body(const struct turbok_cu_add_args &a)
{
    grid_wait();
    T *h = static_cast<T *>(a.h);
    const T *delta = static_cast<const T *>(a.delta);
    for (int64_t i = thread_of_grid(); i < a.n; i += threads_of_grid())
        h[i] = from_f<T>(to_f(h[i]) + to_f(delta[i]));
}
TURBOK_KERNEL_ACT(add, 256, 4)

template <class T> DEVICE void add_gated_body(const struct turbok_cu_add_gated_args &a)
{
    TURBOK_SHARED(float, room, 33);
    grid_wait();
    const int64_t row = static_cast<int64_t>(blockIdx.x) * a.E;
    T *h = static_cast<T *>(a.h) + row;
    const T *delta = static_cast<const T *>(a.delta) + row, *in = static_cast<const T *>(a.in) + row;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x)
        sum = fmaf(to_f(in[i]), a.w[i], sum);
    const float gate = 1.0f / (1.0f + expf(-block_sum(sum, room)));
    for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x)
        h[i] = from_f<T>(fmaf(gate, to_f(delta[i]), to_f(h[i])));
}
TURBOK_KERNEL_ACT(add_gated, 256, 4)

template <class T> DEVICE void head_norm_body(const struct turbok_cu_head_norm_args &a)
{
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp_id();
    grid_wait();
    if (i >= a.heads)
        return;
    const int queries = a.H / a.groups, keys = a.K / a.groups, j = static_cast<int>(i % (a.H + a.K));
    const int at = j % (queries + keys), place = j / (queries + keys) * (queries + 2 * keys) + at;
    const float *w = at < queries ? a.q : a.k;
    T *row = static_cast<T *>(a.qkv) + (i / (a.H + a.K) * (a.H + 2 * a.K) + place) * a.D;
    float squares = 0;
    for (int d = lane_id(); d < a.D; d += 32)
        squares = fmaf(to_f(row[d]), to_f(row[d]), squares);
    const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.D) + a.eps);
    for (int d = lane_id(); d < a.D; d += 32)
        row[d] = from_f<T>(w[d] * (to_f(row[d]) * r));
}
TURBOK_KERNEL_ACT(head_norm, 256, 4)

template <class T> DEVICE void add_bias_body(const struct turbok_cu_add_bias_args &a)
{
    grid_release();
    grid_wait();
    T *y = static_cast<T *>(a.y);
    if (a.out % 8 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0) {
        for (int64_t i = thread_of_grid() * 8; i < a.n; i += threads_of_grid() * 8) {
            float v[8], b[8];
            load8f(y + i, v);
            load8f(a.bias + i % a.out, b);
            UNROLL
            for (int k = 0; k < 8; k++)
                v[k] += b[k];
            store8f(y + i, v);
        }
        return;
    }
    for (int64_t i = thread_of_grid(); i < a.n; i += threads_of_grid())
        y[i] = from_f<T>(to_f(y[i]) + a.bias[i % a.out]);
}
TURBOK_KERNEL_ACT(add_bias, 256, 4)

template <class T> DEVICE void patches_body(const struct turbok_cu_patches_args &a)
{
    grid_wait();
    int64_t s = a.size, row = 3 * s * s, P = static_cast<int64_t>(a.rows) * a.cols;
    for (int64_t i = thread_of_grid(); i < a.n; i += threads_of_grid()) {
        int64_t k = i % row, p = i / row % P, n = i / row / P;
        int64_t c = k / (s * s), y = p / a.cols * s + k / s % s, x = p % a.cols * s + k % s;
        uint8_t v = a.pixels[((n * a.height + y) * a.width + x) * 3 + c];
        static_cast<T *>(a.out)[i] = from_f<T>(a.value[c * 256 + v]);
    }
}
TURBOK_KERNEL_ACT(patches, 256, 4)

template <class T> DEVICE void position_rows_body(const struct turbok_cu_position_rows_args &a)
{
    grid_wait();
    const T *in = static_cast<const T *>(a.in);
    for (int64_t i = thread_of_grid(); i < a.n; i += threads_of_grid()) {
        int64_t e = i % a.E, p = i / a.E % (a.P + 1), n = i / a.E / (a.P + 1);
        float v = p ? to_f(in[(n * a.P + p - 1) * a.E + e]) : a.first[e];
        static_cast<T *>(a.out)[i] = from_f<T>(v + a.position[p * a.E + e]);
    }
}
TURBOK_KERNEL_ACT(position_rows, 256, 4)
