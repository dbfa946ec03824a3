/* kernels/cuda/l_gemm.c: launches of gemm_wide.cuh, see ops.h. */
#include "cuda/ops.h"

enum { ROWS = TURBOK_CU_GEMM_WIDE_ROWS, SPAN = 64, THREADS = 384, MOST = 1 << 30 };

static int64_t over(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}

void turbok_cu_map_rows(turbok_cu *cu, turbok_cu_map *m, const void *p, int32_t rows, int32_t in,
                        int32_t box_rows)
{
    const uint64_t size[] = {(uint64_t)in, (uint64_t)rows}, pitch[] = {(uint64_t)in * 2};
    const uint32_t box[] = {SPAN, (uint32_t)box_rows}, step[] = {1, 1};
    if (!turbok_cu_bad(cu))
        turbok_cu_note(cu,
                       cu->drv.tensor_map(m, TURBOK_CU_MAP_16_BITS, 2, (void *)(uintptr_t)p, size,
                                          pitch, box, step, 0, TURBOK_CU_MAP_SWIZZLE_128,
                                          TURBOK_CU_MAP_L2_256, 0),
                       "the driver makes no map of a matrix; update the NVIDIA driver");
}

/* What pieces of so many outputs take, those of 256 taking 100. */
static const struct {
    int32_t outs, time;
} widths[] = {{256, 100}, {192, 76}, {128, 52}, {64, 41}};
enum { WIDTHS = sizeof widths / sizeof widths[0] };

turbok_cu_gemm_plan turbok_cu_gemm_choose(const turbok_cu *cu, int32_t T, int32_t out, bool gated)
{
    const int64_t rows = over(T, ROWS), units = cu->sm_count;
    turbok_cu_gemm_plan best = {{0}, {0}};
    int64_t least = INT64_MAX;
    for (int i = 0; i < WIDTHS; i++) {
        const int32_t each = widths[i].outs >> gated;
        const int64_t columns = over(out, each), waves = over(rows * columns, units);
        if (waves * widths[i].time < least) {
            least = waves * widths[i].time;
            best.outs[0] = best.outs[1] = widths[i].outs;
            best.columns[0] = (int32_t)columns;
            best.columns[1] = 0;
        }
        /* All waves that are full, and the rest in smaller pieces. */
        const int64_t full = rows * columns / units, some = full * units / rows;
        if (!full || some >= columns)
            continue;
        for (int k = i + 1; k < WIDTHS; k++) {
            const int64_t others = over(out - some * each, widths[k].outs >> gated),
                          time =
                              full * widths[i].time + over(rows * others, units) * widths[k].time;
            if (time >= least)
                continue;
            least = time;
            best.outs[0] = widths[i].outs;
            best.outs[1] = widths[k].outs;
            best.columns[0] = (int32_t)some;
            best.columns[1] = (int32_t)others;
        }
    }
    return best;
}

/* Measured on an H200: with cuBLASLt, gate and up take 0.82 to 0.93 of what two products and the activation take, and with 64
 * rows as long; without it 16 rows and fewer are streamed. */
bool turbok_cu_gemm_joins(const turbok_cu *cu, int32_t T, bool library)
{
    return cu->deterministic || T >= (library ? 96 : 17);
}

static bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

bool turbok_cu_gemm_wide(turbok_cu *cu, int32_t act, const void *w, const void *up, int32_t w_dtype,
                         const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                         int32_t out_dtype, void *y, const turbok_cu_gemm_plan *plan)
{
    if (T < 1)
        return true;
    const turbok_cu_gemm_plan p = plan ? *plan : turbok_cu_gemm_choose(cu, T, out, up != NULL);
    if (!cu->warp_groups || !cu->drv.tensor_map || act == TURBO_F32 || w_dtype != act || in % 8 ||
        in >= MOST || out >= MOST || T >= MOST || !aligned(w) || !aligned(up) || !aligned(x) ||
        (up && (bias || out_dtype != act)))
        return false;
    const int64_t pieces = over(T, ROWS) * ((int64_t)p.columns[0] + p.columns[1]);
    if (pieces > INT32_MAX / 2)
        return false;
    struct turbok_cu_gemm_wide_args a = {
        .bias = bias,
        .y = y,
        .out = out,
        .in = in,
        .T = T,
        .gated = up != NULL,
        .floats = out_dtype == TURBO_F32,
        .outs = {p.outs[0], p.outs[1]},
        .columns = {p.columns[0], p.columns[1]},
        .whole = aligned(y) && out % 8 == 0,
    };
    turbok_cu_map_rows(cu, &a.x, x, T, in, ROWS);
    for (int i = 0; i < 2 && p.columns[i]; i++) {
        turbok_cu_map_rows(cu, &a.w[i][0], w, out, in, p.outs[i] / 2);
        turbok_cu_map_rows(cu, &a.w[i][1], up ? up : w, out, in, p.outs[i] / 2);
    }
    turbok_cu_launch(cu, TURBOK_CU_gemm_wide_f16 + (act == TURBO_BF16),
                     TURBOK_CU_DIM((unsigned)(pieces < cu->sm_count ? pieces : cu->sm_count)),
                     TURBOK_CU_DIM(THREADS), TURBOK_CU_GEMM_WIDE_SHARED, TURBOK_CU_PDL, &a);
    return true;
}
