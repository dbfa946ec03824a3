/* kernels/cuda/attend.cu: attention for any type and head size up to 1024, one block a token and head. The
 * plain way, for what the tensor-core kernels do not take (fp32, odd head sizes, pictures). A row's bits
 * depend on its own sequence only. */
#include "cuda/kv.cuh"

#define KEYS 128 /* threads of a block, and keys of a step */
#define MAX_DIMS 8 /* dims of one thread: heads of up to 1024 */

/* Online softmax over keys from .. to-1: key(j, d) and value(j, d) give numbers. q [D] in shared memory, p
 * [KEYS] and room are scratch. The result for dims tid + i*KEYS in acc; returns the sum of weights. */
template <class Key, class Value>
DEVICE float attend_row(const float *q, float *p, float *room, int D, float scale, int from, int to,
                        float acc[MAX_DIMS], Key key, Value value)
{
    int tid = static_cast<int>(threadIdx.x);
    float m = -INFINITY, sum = 0;
    for (int j = from; j < to; j += KEYS) {
        int n = min(KEYS, to - j);
        float score = -INFINITY;
        if (tid < n) {
            score = 0;
            for (int d = 0; d < D; d++)
                score = fmaf(q[d], key(j + tid, d), score);
            score *= scale;
        }
        float top = warp_max(score);
        if (lane_id() == 0)
            room[warp_id()] = top;
        __syncthreads();
        top = fmaxf(fmaxf(room[0], room[1]), fmaxf(room[2], room[3]));
        float now = fmaxf(m, top), shrink = m > -INFINITY ? expf(m - now) : 0.0f;
        float w = tid < n ? expf(score - now) : 0.0f;
        if (!(score - score == 0.0f) && tid < n)
            w = score - score; /* NaN stays NaN */
        p[tid] = w;
        __syncthreads();
        m = now;
        sum = sum * shrink + block_sum(w, room);
        UNROLL
        for (int i = 0; i < MAX_DIMS; i++) {
            int d = tid + i * KEYS;
            if (d >= D)
                break;
            acc[i] *= shrink;
            for (int k = 0; k < n; k++)
                acc[i] = fmaf(p[k], value(j + k, d), acc[i]);
        }
        __syncthreads();
    }
    return sum;
}

template <class T> DEVICE void put_row(T *out, const float acc[MAX_DIMS], float sum, int D)
{
    UNROLL
    for (int i = 0; i < MAX_DIMS; i++) {
        int d = static_cast<int>(threadIdx.x) + i * KEYS;
        if (d < D)
            out[d] = from_f<T>(sum == 0.0f ? 0.0f : acc[i] / sum);
    }
}

template <class T> DEVICE void attend_body(const struct turbok_cu_attend_args &a)
{
    TURBOK_SHARED(float, p, KEYS);
    TURBOK_SHARED(float, room, 33);
    float *q = reinterpret_cast<float *>(shared_dynamic()),
          acc[MAX_DIMS] = {0, 0, 0, 0, 0, 0, 0, 0};
    const turbok_cu_attn &at = a.at;
    const turbok_cu_kv kv = at.kv;
    grid_wait();
    int64_t t = blockIdx.x;
    int h = static_cast<int>(blockIdx.y), D = kv.head_dim, head = h / (at.n_heads / kv.n_kv);
    int seq = a.b.seq_of[t], pos = a.b.positions[t], to = seq < 0 ? 0 : pos + 1;
    int from = at.window > 0 && pos >= at.window ? pos - at.window + 1 : 0;
    int64_t row = (t * at.n_heads + h) * D;
    for (int d = static_cast<int>(threadIdx.x); d < D; d += KEYS)
        q[d] = to_f(static_cast<const T *>(a.q)[row + d]);
    __syncthreads();
    const int32_t *table = a.b.tables + (seq < 0 ? 0 : seq) * a.b.table_stride;
    auto read = [&](int j, int d, int value) {
        const char *plane = kv_plane(kv, table[j / kv.block_tokens], at.layer, value, head);
        return kv_element(kv, plane, j % kv.block_tokens, d);
    };
    float sum = attend_row(
        q, p, room, D, at.scale, from, to, acc, [&](int j, int d) { return read(j, d, 0); },
        [&](int j, int d) { return read(j, d, 1); });
    put_row(static_cast<T *>(a.out) + row, acc, sum, D);
}
TURBOK_KERNEL_ACT(attend, KEYS, 4)

template <class T> DEVICE void attend_full_body(const struct turbok_cu_attend_full_args &a)
{
    TURBOK_SHARED(float, p, KEYS);
    TURBOK_SHARED(float, room, 33);
    float *q = reinterpret_cast<float *>(shared_dynamic()),
          acc[MAX_DIMS] = {0, 0, 0, 0, 0, 0, 0, 0};
    grid_wait();
    int64_t t = blockIdx.x, h = blockIdx.y, n = blockIdx.z, D = a.D, E = a.H * D;
    const T *qkv = static_cast<const T *>(a.qkv) + n * a.T * 3 * E + h * D;
    for (int64_t d = threadIdx.x; d < D; d += KEYS)
        q[d] = to_f(qkv[t * 3 * E + d]);
    __syncthreads();
    float sum = attend_row(
        q, p, room, a.D, a.scale, 0, a.T, acc,
        [&](int j, int d) { return to_f(qkv[(j * 3 + 1) * E + d]); },
        [&](int j, int d) { return to_f(qkv[(j * 3 + 2) * E + d]); });
    put_row(static_cast<T *>(a.out) + ((n * a.T + t) * a.H + h) * D, acc, sum, a.D);
}
TURBOK_KERNEL_ACT(attend_full, KEYS, 4)
