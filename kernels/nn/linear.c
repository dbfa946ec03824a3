/* kernels/nn/linear.c: y = x W^T + bias over tiles of 64 outputs, for one row and for many.
 *
 * Both cases run the same primitive in the same order of k, so that a row has the same bits alone and
 * in a batch. The accumulators of up to ROWS rows wait in a buffer between two pieces of k, so that a
 * piece of the tile stays in the second-level cache while all rows use it. */
#include <string.h>

#include "internal.h"

#define ROWS 48     /* activation rows that share a pass over a tile; a multiple of 6 */
#define AHEAD 1024 /* bytes fetched before one row uses them: tiles lie one behind the other */
/* k of one piece. Many rows: 64 * 1024 * 2 bytes = 128 KiB of bf16. Rows that compute about as long as memory takes
 * to bring the tile: so few that the first-level cache holds the piece and the next one, which arrives meanwhile. */
#define PIECE 1024
#define FEW 16
#define PIECE_OF_FEW 64

typedef struct linear_job {
    const turbok_prim *prim;
    const turbo_linear *w[2]; /* one matrix, or gate and up of the same shape */
    const float *in;          /* [T,in] */
    float *out;               /* [T,ld] */
    int64_t T, ld;
    int32_t act;              /* with two matrices: out = act(w0 in) * (w1 in) */
    bool activate; /* with one: out = act(w0 in) */
} linear_job;

/* acc [rows][64] = rows of in times tile t of w. */
static void tile_times(const turbok_prim *prim, const turbo_linear *w, int64_t t, const float *in,
                       int64_t rows, float *acc)
{
    size_t es = turbok_dtype_size(w->dtype);
    const char *tile = (const char *)w->data + (size_t)t * (size_t)w->in * TURBOK_TILE * es;
    const int64_t piece = rows > 1 && rows <= FEW ? PIECE_OF_FEW : PIECE;
    const size_t ahead = rows == 1 ? AHEAD : (size_t)piece * TURBOK_TILE * es;
    memset(acc, 0, (size_t)rows * TURBOK_TILE * sizeof *acc);
    for (int64_t k = 0; k < w->in; k += piece) {
        int64_t n = w->in - k < piece ? w->in - k : piece;
        for (int64_t r = 0; r < rows; r += TURBOK_TILE_ROWS) {
            int64_t m = rows - r < TURBOK_TILE_ROWS ? rows - r : TURBOK_TILE_ROWS;
            const char *at = tile + (size_t)k * TURBOK_TILE * es;
            prim->gemm_tile(w->dtype, at, TURBOK_TILE, in + r * w->in + k, w->in, (int)m, n,
                            acc + r * TURBOK_TILE, r ? NULL : at + ahead);
        }
    }
    if (w->bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t l = 0; l < TURBOK_TILE; l++)
                acc[r * TURBOK_TILE + l] += w->bias[t * TURBOK_TILE + l];
}

static void linear_tiles(void *ctx, int64_t from, int64_t to, int thread)
{
    const linear_job *j = ctx;
    _Alignas(64) float acc[2][ROWS * TURBOK_TILE] TURBOK_RAW;
    const turbo_linear *w = j->w[0];
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        int64_t cols = w->out - t * TURBOK_TILE;
        cols = cols < TURBOK_TILE ? cols : TURBOK_TILE;
        for (int64_t r = 0; r < j->T; r += ROWS) {
            int64_t rows = j->T - r < ROWS ? j->T - r : ROWS;
            for (int m = 0; m < (j->w[1] ? 2 : 1); m++)
                tile_times(j->prim, j->w[m], t, j->in + r * w->in, rows, acc[m]);
            for (int64_t i = 0; i < rows; i++) {
                float *out = j->out + (r + i) * j->ld + t * TURBOK_TILE;
                if (j->w[1])
                    j->prim->gated(j->act, acc[0] + i * TURBOK_TILE, acc[1] + i * TURBOK_TILE, cols,
                                   out);
                else if (j->activate)
                    j->prim->activate(j->act, acc[0] + i * TURBOK_TILE, cols, out);
                else
                    memcpy(out, acc[0] + i * TURBOK_TILE, (size_t)cols * sizeof *out);
            }
        }
    }
}

static void run(turbo_exec *x, linear_job *j)
{
    const turbo_linear *w = j->w[0];
    int threads = turbok_pool_threads(x->pool);
    /* Products of less than some ten microseconds stay on the caller: sharing them gains little on an
     * idle machine and loses a time slice on a busy one (a 3.7M model fell from 7,600 to 590 tokens/s
     * when another program wanted the second core). */
    int64_t work = w->tiles * w->in * TURBOK_TILE * j->T;
    int64_t grain = work < 1 << 20 ? w->tiles : w->tiles / (threads * 4);
    turbok_pool_for(x->pool, w->tiles, grain < 1 ? 1 : grain, linear_tiles, j);
}

void turbok_float_linear(turbo_exec *x, const turbo_linear *w, const float *in, int64_t T,
                         int64_t ld, float *out)
{
    linear_job j = {.prim = x->prim, .w = {w}, .in = in, .out = out, .T = T, .ld = ld};
    run(x, &j);
}

void turbok_op_linear(turbo_exec *x, const turbo_linear *w, const void *in, int32_t T, void *out)
{
    if (turbok_coded(w))
        turbok_grid_linear(x, w, in, T, w->out, out);
    else
        turbok_float_linear(x, w, in, T, w->out, out);
}

void turbok_op_gated_mlp(turbo_exec *x, const turbo_linear *gate, const turbo_linear *up,
                         const turbo_linear *down, int32_t act, const void *in, int32_t T,
                         void *scratch, void *out)
{
    linear_job j = {
        .prim = x->prim,
        .w = {gate, up},
        .in = in,
        .out = scratch,
        .T = T,
        .ld = gate->out,
        .act = act,
    };
    if (turbok_coded(gate) || turbok_coded(up))
        turbok_grid_gated(x, gate, up, act, in, T, scratch);
    else
        run(x, &j);
    turbok_op_linear(x, down, scratch, T, out);
}

void turbok_op_mlp(turbo_exec *x, const turbo_linear *up, const turbo_linear *down, int32_t act,
                   const void *in, int32_t T, void *scratch, void *out)
{
    linear_job j = {
        .prim = x->prim,
        .w = {up},
        .in = in,
        .out = scratch,
        .T = T,
        .ld = up->out,
        .act = act,
        .activate = true,
    };
    if (turbok_coded(up)) {
        turbok_grid_linear(x, up, in, T, up->out, scratch);
        x->prim->activate(act, scratch, T * up->out, scratch);
    } else {
        run(x, &j);
    }
    turbok_op_linear(x, down, scratch, T, out);
}

void turbok_op_logits(turbo_exec *x, const turbo_linear *head, const void *in, int32_t R, float *out)
{
    turbok_op_linear(x, head, in, R, out);
}
