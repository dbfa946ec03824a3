/* kernels/cuda/wq_wide_sums.cuh: of wq_wide.cuh: how codes become numbers and products sums. */
#ifndef TURBOK_CUDA_WQ_WIDE_SUMS_CUH
#define TURBOK_CUDA_WQ_WIDE_SUMS_CUH

#include "cuda/wq_wide_place.cuh"

namespace wq_wide
{
/* ---- two groups multiply -------------------------------------------------------------------------------- */

/* What a warp finds in shared memory for a span. */
struct span_at {
    const char *stage, *belongs;
    const float *x_sums;
    const uint32_t *table;
    int stored; /* rows of 64 inputs */
};

/* A lane's codes of the first chunk of its warp's tile m. */
template <class S> DEVICE const char *codes_of(const span_at &at, int m)
{
    return at.stage + (8 * m + warp_id()) * S::W_TILE + lane_id() * 16;
}

/* A thread's sums: registers of wgmma(), of outputs r and r + 8 (r = lane / 4) of its warp's tile of each 64 outputs. */
template <class T, class S> struct sums {
    float acc[S::MT][S::SUMS_OF];
    float part[S::DEPTH > 0 ? S::DEPTH : 1][S::SUMS_OF];
    uint32_t codes[S::BUFFERS][S::PART][4];
    float scale[2][2], min[2][2];

    DEVICE_METHOD void clear()
    {
        UNROLL
        for (int m = 0; m < S::MT; m++)
            UNROLL
        for (int i = 0; i < S::SUMS_OF; i++)
            acc[m][i] = 0;
    }
    DEVICE_METHOD void begin()
    {
        clear();
        UNROLL
        for (int i = 0; i < S::SUMS_OF && S::LATE; i++)
            part[S::DEPTH - 1][i] = 0;
        scale[1][0] = scale[1][1] = 0;
    }
    /* Converts `step` and those that make a part with it, into a buffer, and multiplies them. */
    DEVICE_METHOD void multiply(const args &a, const span_at &at, uint4 w, int step, int buffer,
                                const wq::group<T, S::BITS> &group, float (&to)[S::SUMS_OF], bool add)
    {
        UNROLL
        for (int k = 0; k < S::PART; k++) {
            wq::fragment<T, S::BITS>(S::GENERAL ? a.kind : static_cast<int>(TURBOK_CU_Q_INT), w,
                                     (step + k) % S::CHUNK_STEPS, group, at.table,
                                     codes[buffer][k]);
            if (S::MODE == NUMBERS) {
                const uint32_t scales[2] = {pack2<T>(group.scale[0], group.scale[0]),
                                            pack2<T>(group.scale[1], group.scale[1])};
                UNROLL
                for (int i = 0; i < 4; i++)
                    codes[buffer][k][i] = fma2<T>(codes[buffer][k][i], scales[i % 2], 0x80008000u);
            }
        }
        const char *x = at.stage + S::W_BYTES;
        wgmma_fence();
        UNROLL
        for (int k = 0; k < S::PART; k++)
            wgmma<0>(to, codes[buffer][k],
                     wgmma_tile(x + (step + k) / 4 * at.stored * 128 + (step + k) % 4 * 32, 1024, 0),
                     add || k > 0, T());
        wgmma_commit();
    }
    /* Sums of a unit, number d, to those of all. */
    DEVICE_METHOD void add(float (&to)[S::SUMS_OF], int d)
    {
        UNROLL
        for (int i = 0; i < S::SUMS_OF; i++)
            to[i] = fmaf(part[d][i], scale[d][i / 2 % 2], to[i]);
    }

    /* ---- a span whose units are added before it ends */

    template <int u> DEVICE_METHOD void begin_unit(const args &a, const span_at &at)
    {
        enum { m = u / S::GROUPS, g = u % S::GROUPS, d = u % S::DEPTH, FIRST = g * S::PER / 16 };
        wq::group<T, S::BITS> group;
        read_group<T, S>(a, at.belongs + 8 * m * S::BELONGS, g * S::PER >> a.shift, group);
        UNROLL
        for (int h = 0; h < 2; h++)
            scale[d][h] = group.scale[h], min[d][h] = group.min[h];
        uint4 w;
        UNROLL
        for (int i = 0; i < S::PARTS; i++) {
            const int step = FIRST + i * S::PART;
            if (i > 1)
                wgmma_wait<1>(); /* for those that had this buffer before */
            if (i == 0 || step % S::CHUNK_STEPS == 0)
                w = load16(codes_of<S>(at, m) + step / S::CHUNK_STEPS * 512);
            multiply(a, at, w, step, S::PARTS > 1 ? i % 2 : d, group, part[d], i > 0);
        }
    }
    /* Adds unit u to the sums of all, while so many later ones are on their way. */
    template <int u, int pending> DEVICE_METHOD void end_unit(const args &a, const span_at &at)
    {
        enum { m = u / S::GROUPS, g = u % S::GROUPS, d = u % S::DEPTH };
        wgmma_wait<pending>(part[d]);
        add(acc[m], d);
        if (!S::GENERAL || !a.m.min)
            return;
        const float *x = at.x_sums + g * at.stored + lane_id() % 4 * 2;
        UNROLL
        for (int i = 0; i < S::SUMS_OF; i += 4) {
            const uint2 two = load8(x + i * 2);
            UNROLL
            for (int e = 0; e < 4; e++)
                acc[m][i + e] = fmaf(-min[d][e / 2], __uint_as_float(e % 2 ? two.y : two.x),
                                     acc[m][i + e]);
        }
    }
    template <int u> DEVICE_METHOD void units(const args &a, const span_at &at)
    {
        if constexpr (u < S::UNITS) {
            if constexpr (S::DEPTH == 1 && u > 0)
                end_unit<u - 1, 0>(a, at);
            begin_unit<u>(a, at);
            if constexpr (S::DEPTH == 2 && u > 0)
                end_unit<u - 1, 1>(a, at);
            units<u + 1>(a, at);
        } else {
            end_unit<S::UNITS - 1, 0>(a, at);
        }
    }

    /* ---- a span of which products are on their way when the next one begins */

    /* What part i of tile m is made of, where it is the first one with it. */
    template <int m>
    DEVICE_METHOD void fetch(const args &a, const span_at &at, const wq::group<T, S::BITS> (&row)[S::MT],
                             int i, wq::group<T, S::BITS> (&group)[S::GROUPS], uint4 (&w)[S::CHUNKS])
    {
        enum { EACH = S::PARTS / S::GROUPS };
        const int step = i * S::PART, g = i / EACH;
        if (step % S::CHUNK_STEPS == 0)
            w[step / S::CHUNK_STEPS] = load16(codes_of<S>(at, m) + step / S::CHUNK_STEPS * 512);
        if (S::MODE == ROWS)
            group[g] = row[m];
        else if (i % EACH == 0)
            read_group<T, S>(a, at.belongs + 8 * m * S::BELONGS, g * S::PER >> a.shift, group[g]);
    }
    /* Parts of tile m into sums `to`. before: the barrier of the span before, which is released when its products have ended;
     * d: which of two sums is not that of the span before. */
    template <int m, int d>
    DEVICE_METHOD void parts(const args &a, const span_at &at, const wq::group<T, S::BITS> (&row)[S::MT],
                             float (&to)[S::SUMS_OF], bulk_barrier *before)
    {
        wq::group<T, S::BITS> group[S::GROUPS];
        uint4 w[S::CHUNKS];
        UNROLL
        for (int i = 0; i < S::PARTS; i++)
            fetch<m>(a, at, row, i, group, w);
        UNROLL
        for (int i = 0; i < S::PARTS; i++) {
            const int n = m * S::PARTS + i, step = i * S::PART;
            if (n != S::BUFFERS - 1) {
                wgmma_wait<S::BUFFERS - 1>();
            } else {
                if constexpr (S::LATE) {
                    wgmma_wait<S::BUFFERS - 1>(part[1 - d]);
                    add(acc[0], 1 - d);
                } else {
                    wgmma_wait<S::BUFFERS - 1>();
                }
                if (before)
                    bulk_arrive(before);
            }
            multiply(a, at, w[step / S::CHUNK_STEPS], step, n % S::BUFFERS,
                     group[i * S::GROUPS / S::PARTS], to, !S::LATE || i > 0);
        }
        if (S::LATE)
            scale[d][0] = group[0].scale[0], scale[d][1] = group[0].scale[1];
    }
    template <int d>
    DEVICE_METHOD void late(const args &a, const span_at &at, const wq::group<T, S::BITS> (&row)[S::MT],
                            bulk_barrier *before)
    {
        if constexpr (S::LATE) {
            parts<0, d>(a, at, row, part[d], before);
        } else {
            parts<0, 0>(a, at, row, acc[0], before);
            if constexpr (S::MT > 1)
                parts<S::MT - 1, 0>(a, at, row, acc[S::MT - 1], before);
        }
    }
    DEVICE_METHOD void scale_rows(const wq::group<T, S::BITS> (&row)[S::MT])
    {
        UNROLL
        for (int m = 0; m < S::MT; m++)
            UNROLL
        for (int i = 0; i < S::SUMS_OF; i++)
            acc[m][i] *= row[m].scale[i / 2 % 2];
    }
    template <int d> DEVICE_METHOD void finish()
    {
        if constexpr (S::LATE) {
            wgmma_wait<0>(part[d]);
            add(acc[0], d);
        } else {
            UNROLL
            for (int m = 0; m < S::MT; m++)
                wgmma_wait<0>(acc[m]);
        }
    }
};

/* Where a warp is in the spans of its block. */
template <class S> struct walk {
    char *space;
    const char *belongs;
    const uint32_t *table;
    bulk_barrier *full, *empty, *before; /* before: of the span before; NULL: there was none */
    int stored, slot, turn, ring_slot;

    DEVICE_METHOD span_at next(ring<S> &scales)
    {
        if (S::MODE != ROWS) {
            __syncwarp(); /* all have read what is overwritten now */
            scales.ask();
            copy_wait<S::RINGS - 1>();
            copies_not_multiplied();
            __syncwarp();
        }
        bulk_wait(full + slot, turn);
        return {space + slot * S::STAGE, belongs + ring_slot * S::TILES * S::BELONGS,
                reinterpret_cast<const float *>(space + S::X_SUMS + slot * S::X_SUMS_BYTES), table,
                stored};
    }
    DEVICE_METHOD void step()
    {
        before = empty + slot;
        if (++slot == S::STAGES)
            slot = 0, turn ^= 1;
        if (++ring_slot == S::RINGS)
            ring_slot = 0;
    }
};

/* Scale and zero of rows, for a lane's two outputs of each tile. */
template <class T, class S>
DEVICE void read_rows(const args &a, const place &p, wq::group<T, S::BITS> (&row)[S::MT])
{
    UNROLL
    for (int m = 0; m < S::MT; m++)
        row[m].load(a.m, a.scale_dtype, a.offset,
                    static_cast<int64_t>(p.tile_at(8 * m + warp_id())) * 16 + lane_id() / 4);
}

template <class T, class S>
DEVICE void add_spans(const args &a, const place &p, walk<S> &at, ring<S> &scales, sums<T, S> &own)
{
    int left = p.end - p.span;
    if constexpr (!S::DIRECT && !S::LATE) {
        UNROLL_BY(1)
        for (; left; left--) {
            own.template units<0>(a, at.next(scales));
            at.step();
            bulk_arrive(at.before);
        }
    } else {
        wq::group<T, S::BITS> row[S::MT];
        if (S::MODE == ROWS)
            read_rows<T, S>(a, p, row);
        UNROLL_BY(1)
        for (; left; left--) {
            own.template late<0>(a, at.next(scales), row, at.before);
            at.step();
            if constexpr (S::LATE) {
                if (!--left) {
                    own.template finish<0>();
                    return;
                }
                own.template late<1>(a, at.next(scales), row, at.before);
                at.step();
            }
        }
        own.template finish<S::LATE ? 1 : 0>();
        if (S::MODE == ROWS)
            own.scale_rows(row);
    }
}
} // namespace wq_wide

#endif
