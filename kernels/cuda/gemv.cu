/* kernels/cuda/gemv.cu: y = x W^T for few rows of x: W is streamed once, through a queue in shared memory into
 * the A operand of the tensor cores. A block takes tiles of 16 rows of W (or 8 of gate and 8 of up), its
 * warps share k. Each thread has a queue of its own: what it asks for it also takes, so the copies need no
 * barrier and go on across tiles. A lane's 16 bytes of a row are 8 inputs in a row; which of them a step of
 * 16 calls k = 2j, 2j+1, 2j+8, 2j+9 does not matter as long as x is taken in the same order.
 *
 * There is one block a multiprocessor, and its queue leaves no room for a second: kernels that are let in early
 * would else be put two to one multiprocessor and none to another. A block lets the next kernel in at once and fills
 * its queue before it waits for the kernel that makes x, so that weights are on their way while small
 * kernels run. */
#include "cuda/norm_row.cuh"

#define WARPS 16
#define THREADS (32 * WARPS)
#define DEPTH 2 /* entries of a queue */

/* The weights of one lane, in the order in which it multiplies them: entries of CHUNK inputs of two rows,
 * every WARPS-th entry of a row, tile after tile. */
template <class T, bool GATED, int CHUNK> struct weight_queue {
    static constexpr int PIECES = CHUNK / 16; /* of 16 bytes: 32 inputs of one row, then of the other, ... */
    const T *row[2]; /* where it asks next */
    uint4 *room; /* [DEPTH][PIECES][THREADS], this thread's */
    int size[2]; /* bytes of a piece: 16, or 0 beyond the last row */
    int rest; /* inputs from here to the end of the row */
    int tile, tiles;
    uint64_t policy;
    const struct turbok_cu_multiply_args *a;

    DEVICE_METHOD int first() const
    {
        return warp_id() * CHUNK + 8 * (lane_id() % 4);
    }
    DEVICE_METHOD void at_tile()
    {
        int g = lane_id() / 4, k = first();
        rest = tile < tiles ? a->in - k : 0;
        UNROLL
        for (int i = 0; i < 2; i++) {
            int64_t r = GATED ? tile * INT64_C(8) + g : tile * INT64_C(16) + 8 * i + g;
            size[i] = r < a->out ? 16 : 0;
            row[i] = static_cast<const T *>(GATED && i ? a->up : a->w) +
                     (size[i] ? r : 0) * a->in + k;
        }
    }
    DEVICE_METHOD void ask(int slot)
    {
        uint4 *to = room + slot * (PIECES * THREADS);
        if (tile < tiles) {
            UNROLL
            for (int i = 0; i < PIECES; i++)
                copy16_async_once(to + i * THREADS, row[i % 2] + i / 2 * 32,
                                  rest > i / 2 * 32 ? size[i % 2] : 0, policy);
            row[0] += WARPS * CHUNK;
            row[1] += WARPS * CHUNK;
            rest -= WARPS * CHUNK;
            if (rest + 8 * (lane_id() % 4) <= 0) {
                tile += static_cast<int>(gridDim.x);
                at_tile();
            }
        }
        copy_commit();
    }
};

/* This lane's part of the B operand of an entry that begins at input k of rows x [T,in]. */
template <class T, int NT, int CHUNK>
DEVICE void inputs(const struct turbok_cu_multiply_args &a, const T *x, int k,
                   uint4 v[CHUNK / 32][NT])
{
    UNROLL
    for (int i = 0; i < CHUNK / 32; i++)
        UNROLL
    for (int n = 0; n < NT; n++) {
        int t = 8 * n + lane_id() / 4, at = k + 32 * i + 8 * (lane_id() % 4);
        v[i][n] = t < a.T && at < a.in ? load16(x + static_cast<int64_t>(t) * a.in + at)
                                       : make_uint4(0, 0, 0, 0);
    }
}

/* Adds the warps' sums [warp][token][row] of a tile and stores its results. before: this thread's number of h. */
template <class T, int NT, bool GATED, bool BESIDE>
DEVICE void store_tile(const struct turbok_cu_multiply_args &a, int tile, const float *sums, T before)
{
    int64_t o0 = static_cast<int64_t>(tile) * (GATED ? 8 : 16);
    for (int i = static_cast<int>(threadIdx.x); i < 16 * 8 * NT; i += THREADS) {
        int row = i % 16, t = i / 16;
        float v = 0, other = 0;
        if (t >= a.T || (GATED && row >= 8) || o0 + row >= a.out)
            continue;
        UNROLL
        for (int k = 0; k < WARPS; k++) {
            v += sums[(k * 8 * NT + t) * 16 + row];
            if (GATED)
                other += sums[(k * 8 * NT + t) * 16 + row + 8];
        }
        if (GATED)
            v = activation(a.fn, to_f(from_f<T>(v))) * to_f(from_f<T>(other));
        else if (a.bias)
            v += a.bias[o0 + row];
        put_element(a.out_dtype, a.y, static_cast<int64_t>(t) * a.out + o0 + row, v);
        if (BESIDE && !GATED && a.h)
            add_to(static_cast<T *>(a.h) + static_cast<int64_t>(t) * a.out + o0 + row, before, v);
    }
}

template <class T, int NT, bool GATED, bool BESIDE, int CHUNK>
DEVICE void gemv(const struct turbok_cu_multiply_args &a)
{
    typedef weight_queue<T, GATED, CHUNK> queue;
    constexpr int PIECES = queue::PIECES, SUMS = WARPS * 16 * 8 * NT;
    TURBOK_SHARED(float, both, 2 * SUMS); /* of this tile and of the one before */
    int lane = lane_id(), g = lane / 4, j = lane % 4, warp = warp_id(), slot = 0, turn = 0;
    int entries = warp * CHUNK < a.in ? (a.in - warp * CHUNK - 1) / (WARPS * CHUNK) + 1 : 0;
    const T *x = static_cast<const T *>(a.x);
    norm_weights weights;
    queue q;
    grid_release();
    q.a = &a;
    q.policy = once_policy();
    q.room = reinterpret_cast<uint4 *>(shared_dynamic()) + threadIdx.x;
    q.tiles = (a.out - 1) / (GATED ? 8 : 16) + 1;
    q.tile = entries ? static_cast<int>(blockIdx.x) : q.tiles;
    q.at_tile();
    UNROLL
    for (int i = 0; i < DEPTH; i++)
        q.ask(i);
    if (BESIDE && a.norm)
        weights.load(a.norm, a.in);
    grid_wait();
    if (BESIDE && a.norm) {
        TURBOK_SHARED(float, room, TURBOK_CU_BESIDE_ROWS *NORM_PARTS);
        T *rows = reinterpret_cast<T *>(shared_dynamic() + DEPTH * PIECES * THREADS * 16);
        stage_rows(x, a.T, a.in, a.norm, weights, a.eps, room, 1, rows);
        x = rows;
    }
    for (int tile = static_cast<int>(blockIdx.x); tile < q.tiles;
         tile += static_cast<int>(gridDim.x), turn ^= 1) {
        const int64_t o = tile * INT64_C(16) + threadIdx.x % 16;
        float c[NT][4], *sums = both + turn * SUMS;
        T before = from_f<T>(0);
        if (BESIDE && !GATED && a.h && static_cast<int>(threadIdx.x / 16) < a.T && o < a.out)
            before = static_cast<const T *>(a.h)[threadIdx.x / 16 * static_cast<int64_t>(a.out) + o];
        uint4 next[CHUNK / 32][NT];
        UNROLL
        for (int n = 0; n < NT; n++)
            c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
        inputs<T, NT, CHUNK>(a, x, warp * CHUNK, next);
        for (int e = 0; e < entries; e++) {
            const uint4 *w = q.room + slot * (PIECES * THREADS);
            uint4 v[CHUNK / 32][NT], u[PIECES];
            UNROLL
            for (int i = 0; i < CHUNK / 32; i++)
                UNROLL
            for (int n = 0; n < NT; n++)
                v[i][n] = next[i][n];
            inputs<T, NT, CHUNK>(a, x, ((e + 1) * WARPS + warp) * CHUNK, next);
            copy_wait<DEPTH - 1>();
            UNROLL
            for (int i = 0; i < PIECES; i++)
                u[i] = w[i * THREADS];
            UNROLL
            for (int i = 0; i < CHUNK / 32; i++) {
                const uint4 &lo = u[2 * i], &hi = u[2 * i + 1];
                uint32_t m0[4] = {lo.x, hi.x, lo.y, hi.y}, m1[4] = {lo.z, hi.z, lo.w, hi.w};
                UNROLL
                for (int n = 0; n < NT; n++) {
                    uint32_t b0[2] = {v[i][n].x, v[i][n].y}, b1[2] = {v[i][n].z, v[i][n].w};
                    mma(c[n], m0, b0, T());
                    mma(c[n], m1, b1, T());
                }
            }
            q.ask(slot);
            slot = slot + 1 < DEPTH ? slot + 1 : 0;
        }
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
        for (int i = 0; i < 4; i++)
            sums[(warp * 8 * NT + 8 * n + 2 * j + i % 2) * 16 + g + i / 2 * 8] = c[n][i];
        __syncthreads();
        store_tile<T, NT, GATED, BESIDE>(a, tile, sums, before);
    }
}

/* For devices with room for TURBOK_CU_GEMV_SHARED, and for those without. BESIDE: with what turbok_cu_beside names. */
#define KERNEL(name, T, NT, GATED, BESIDE)                                                         \
    TURBOK_KERNEL(name##_##T, multiply, THREADS, 1)                                                \
    {                                                                                              \
        gemv<T, NT, GATED, BESIDE, 128>(a);                                                        \
    }                                                                                              \
    TURBOK_KERNEL(name##_small_##T, multiply, THREADS, 1)                                          \
    {                                                                                              \
        gemv<T, NT, GATED, BESIDE, 64>(a);                                                         \
    }
#define INSTANCES(T)                                                                               \
    KERNEL(gemv8, T, 1, false, false)                                                              \
    KERNEL(gemv16, T, 2, false, false)                                                             \
    KERNEL(gemv_gated, T, 1, true, false)                                                          \
    KERNEL(gemv8_beside, T, 1, false, true)                                                        \
    KERNEL(gemv_gated_beside, T, 1, true, true)
INSTANCES(bf16)
INSTANCES(f16)
