/* kernels/cuda/state.h: the inside of a CUDA device, for the host files of this folder that are not
 * launchers. One stream; engine thread, but for copies of single blocks (device.c). */
#ifndef TURBOK_CUDA_STATE_H
#define TURBOK_CUDA_STATE_H

#include "cuda/blas.h"
#include "cuda/ops.h"
#include "cuda/sample.h"
#include "cuda/wq.h"
#include "internal.h"

#define STAGES 4 /* pinned buffers between a file and the device */
#define STAGE_BYTES ((size_t)8 << 20)
#define AHEAD 2 /* steps on the device at a time */
#define GAP_STEPS 4 /* whose ends are remembered: those on the device and two that are over */
#define GAPS 4096
#define BUCKETS 18 /* recorded steps, by size of the batch: graph.c */

/* Memory that an op reads or writes. */
typedef struct turbok_cuda_span {
    uintptr_t at;
    size_t bytes;
} turbok_cuda_span;

/* A product, a norm, or heads to be turned and stored, that are not on the stream yet: fuse.c. */
typedef struct turbok_cuda_product {
    const turbo_linear *w; /* NULL: none */
    const void *x;
    void *y;
    int32_t T;
} turbok_cuda_product;
typedef struct turbok_cuda_norm {
    void *h, *out; /* h NULL: none */
    const float *w;
    float eps;
    int32_t T, E;
} turbok_cuda_norm;
typedef struct turbok_cuda_heads {
    const void *qkv; /* NULL: none */
    void *q;
    turbok_cu_attn at;
} turbok_cuda_heads;

typedef struct turbok_cuda {
    turbok_cu *cu;
    int32_t act;
    turbok_blas *blas; /* NULL: no library, own kernels multiply */
    char *stage[STAGES];
    turbok_cu_event staged[STAGES];
    int stage_now;
    size_t stage_used; /* of that one */
    struct turbok_cuda_load *later; /* [n_later] of later_room: copies that nobody has begun */
    int32_t n_later, later_room;
    size_t later_bytes;
    turbo_status later_bad; /* of those before; why */
    turbo_err later_why;
    turbok_cu_ptr arena; /* where weights lie: one piece, taken from its beginning on; or 0 */
    size_t arena_bytes, arena_used;
    char *coder; /* grids.c: where numbers become codes, or NULL */
    size_t coder_bytes;

    turbok_steps steps;
    int32_t stride; /* blocks a row of a block table has room for */
    /* Steps that were begun and waited for. There may be two between: the one that is packed next has the pinned
     * memory and the recordings of number begun % 2. */
    uint64_t begun, waited;
    turbok_cu_event done[AHEAD]; /* what the host waits for */
    char *inputs,
        *host_inputs[AHEAD]; /* device and pinned; one layout for both, packed for each step */
    size_t inputs_bytes;
    char *scratch;
    size_t scratch_bytes;
    void *blas_space; /* workspace of the library; NULL in fp32 */
    char *pictures; /* values of pixels, then those of one picture; NULL: there are none */
    char *wq_scratch; /* of products with quantised matrices; NULL: there are none */
    turbok_cu_batch batch; /* of the running step */
    size_t upload_bytes;
    const int32_t *row_index; /* what ops->gather is given for the device's own copy */
    turbok_cu_kv kv;
    bool stepping; /* between the beginning of a step and its end */
    turbok_cuda_product kept;
    turbok_cuda_norm norm;
    turbok_cuda_heads heads;

    /* draw.c */
    char *draw; /* device: tokens and status of the rows, sums, tokens of a new place, places */
    size_t draw_bytes;
    int32_t *host_drawn[AHEAD]; /* pinned [2 * max_seqs]: tokens, then status */
    turbok_cu_sample_row *asked; /* [max_seqs] of each place; index is filled for a step */
    int32_t *lists; /* [PLACE_NUMBERS] a place's lists on their way */
    bool drawing; /* the running step has rows to draw */

    /* graph.c */
    bool replaying; /* the running step */
    bool graphs;
    int recording; /* bucket that is being recorded, -1: none */
    turbok_cu_graph_exec recorded[BUCKETS][AHEAD];
    int32_t *pad; /* [6 * max_seqs + 1] host arrays of a padded batch */
    turbok_cu_event began[GAP_STEPS], ended[GAP_STEPS]; /* of recorded steps; NULL: not measured */
    uint64_t timed[GAP_STEPS]; /* number of the step + 1, 0: none */
    float *gaps; /* [GAPS] */
    int32_t n_gaps;
} turbok_cuda;

/* Numbers that are in memory, or in a file, which then counts. */
typedef struct turbok_cuda_source {
    const void *data;
    const turbok_file *file; /* or NULL; data if that is mapped */
    int32_t dtype;
    bool finite; /* must be; of dtype */
} turbok_cuda_source;

/* A copy that was asked for: upload.c. */
typedef struct turbok_cuda_load {
    turbok_cuda_source from;
    turbok_file file; /* what from.file points to, of one that is done later */
    const char *name; /* or NULL */
    turbok_cu_ptr to;
    size_t bytes;
} turbok_cuda_load;

/* A matrix on this device. l.data is [out,in] of l.dtype, or the image of q; or l.parts has several, one below
 * the other, none of them dense. */
typedef struct turbok_cuda_matrix {
    turbo_linear l; /* first: what handles point to */
    turbok_cu_wq q; /* bits 0: not quantised */
} turbok_cuda_matrix;

static inline const turbok_cu_wq *turbok_cuda_coded(const turbo_linear *w)
{
    const turbok_cuda_matrix *m = (const turbok_cuda_matrix *)(const void *)w;
    return m->q.bits ? &m->q : NULL;
}

static inline turbok_cuda *turbok_cuda_of(const turbo_exec *x)
{
    return x->self;
}

/* device.c: the only symbol of the shared object. */
TURBO_EXPORT const turbok_backend *turbok_backend_entry(void);
/* memory of the device; NULL: it is full. */
void *turbok_cuda_take(turbok_device *d, size_t bytes);
void turbok_cuda_give(turbok_device *d, void *p, size_t bytes);
turbo_status turbok_cuda_expect(turbok_device *d, uint64_t bytes, turbo_err *err);
/* upload.c: host memory of any kind to the device through pinned buffers, in stream order. */
turbo_status turbok_cuda_stages_open(turbok_cuda *s, turbo_err *err);
void turbok_cuda_stages_close(turbok_cuda *s);
void turbok_cuda_upload(turbok_device *d, void *to, const void *from, size_t bytes);
/* The same of little, by the calling thread alone. */
void turbok_cuda_put(turbok_cuda *s, void *to, const void *from, size_t bytes);
/* The same of a source. EDATA: a number is not finite, or the file ends early; what the device has then is of no
 * use. */
turbo_status turbok_cuda_send(turbok_device *d, void *to, const turbok_cuda_source *from,
                              size_t bytes, turbo_err *err);
/* The same of a part of a matrix that may come later: together with others, so that all threads and the copies go on
 * from one to the next. From half a GiB on those that were asked for are begun. What is wrong with one finish_loads tells. */
turbo_status turbok_cuda_send_later(turbok_device *d, void *to, const turbok_part *part,
                                    int32_t dtype, size_t bytes, turbo_err *err);
/* Sends what was to come later. EDATA, once: the first that cannot be used; the device is good after it. */
turbo_status turbok_cuda_finish_loads(turbok_device *d, turbo_err *err);
/* Nothing is to come to this memory any more. */
void turbok_cuda_forget(turbok_cuda *s, const void *p, size_t bytes);
/* n bytes of a source from offset on, on the calling thread; false: the file cannot be read, which unread says. */
bool turbok_cuda_fetch(const turbok_cuda_source *from, uint64_t offset, size_t n, void *to);
turbo_status turbok_cuda_unread(turbo_err *err);
/* Pinned memory, at most STAGE_BYTES, that no copy uses any more; small pieces share a buffer, so that one need not
 * wait for the step that is on its way. After the copies from it, sent. */
char *turbok_cuda_stage(turbok_cuda *s, size_t bytes);
void turbok_cuda_sent(turbok_cuda *s);
/* The same for weights, and filling it by all threads with what becomes `bytes` on the device: counted in d->copied. */
char *turbok_cuda_buffer(turbok_device *d, size_t bytes);
void turbok_cuda_fill(turbok_device *d, size_t bytes, int64_t n, turbok_range_fn fn, void *ctx);
/* linear.c */
uint64_t turbok_cuda_rows_bytes(int32_t dtype, const turbok_part *parts, int32_t n, int64_t in,
                                uint32_t flags, turbo_err *err);
turbo_status turbok_cuda_linear_rows_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                         int32_t n, int64_t in, uint32_t flags, turbo_linear **w,
                                         turbo_err *err);
void turbok_cuda_linear_free(turbok_device *d, turbo_linear *w);
turbo_status turbok_cuda_full(int64_t out, int64_t in, size_t bytes, turbo_err *err);
/* grids.c: the same of parts of which some are grids. 0, or an error: it cannot be, err says why. */
uint64_t turbok_cuda_grids_bytes(const turbok_part *parts, int32_t n, int64_t in, uint32_t flags,
                                 turbo_err *err);
turbo_status turbok_cuda_grids_new(turbok_device *d, const turbok_part *parts, int32_t n,
                                   int64_t in, uint32_t flags, turbo_linear **w, turbo_err *err);
/* Rows `rows` of a quantised table, [n,in] act. */
void turbok_cuda_coded_rows(turbok_cuda *s, const turbo_linear *w, const int32_t *rows, int32_t n,
                            void *y);
void turbok_cuda_coded_multiply(turbok_cuda *s, const turbo_linear *w, const void *x, int32_t T,
                                int32_t out_dtype, void *y);
/* turbok_cu_wq_gated of any number of rows. */
bool turbok_cuda_coded_gated(turbok_cuda *s, const turbok_cu_wq *gate, const turbok_cu_wq *up,
                             int32_t fn, const void *x, int32_t T, void *y,
                             const turbok_cu_beside *b);
uint64_t turbok_cuda_coded_scratch(const turbok_cu *cu, int32_t max_tokens);
/* y [T,out] of out_dtype = x [T,in] W^T + bias */
void turbok_cuda_multiply(turbok_cuda *s, const turbo_linear *w, const void *x, int32_t T,
                          int32_t out_dtype, void *y);
/* The same of act but for a bias that nothing adds yet: that comes back, or NULL. */
const float *turbok_cuda_multiply_bare(turbok_cuda *s, const turbo_linear *w, const void *x,
                                       int32_t T, void *y);
/* experts.c */
uint64_t turbok_cuda_experts_bytes(int32_t n_experts);
turbo_status turbok_cuda_experts_open(turbok_device *d, turbo_experts *x, turbo_err *err);
void turbok_cuda_experts_close(turbok_device *d, turbo_experts *x);
void turbok_cuda_op_moe(turbo_exec *x, const turbo_linear *router, const turbo_experts *w,
                        const void *in, int32_t T, void *scratch, void *out);
/* fuse.c. An op says what it reads and what it writes, or flushes, before it launches anything of its own. */
/* What lies at p: rows of `width` activations. */
turbok_cuda_span turbok_cuda_rows(const turbok_cuda *s, const void *p, int64_t rows, int64_t width);
bool turbok_cuda_apart(turbok_cuda_span a, turbok_cuda_span b);
void turbok_cuda_settle(turbok_cuda *s); /* what was kept of products and heads is launched */
void turbok_cuda_reads(turbok_cuda *s, turbok_cuda_span of);
void turbok_cuda_writes(turbok_cuda *s, turbok_cuda_span of); /* all of it, whatever was there */
void turbok_cuda_flush(turbok_cuda *s); /* the norm too */
/* ops->rmsnorm */
void turbok_cuda_rmsnorm(turbok_cuda *s, void *h, const void *delta, const float *w, float eps,
                         int32_t T, int32_t E, void *out);
/* Do products of T rows with w have norms and sums beside them? */
bool turbok_cuda_fuses(const turbok_cuda *s, const turbo_linear *w, int32_t T);
/* Is `in` the output of a norm that was not launched? Then a product of s->norm.h with b takes its place. */
bool turbok_cuda_normed(turbok_cuda *s, const void *in, int32_t T, int64_t E, turbok_cu_beside *b);
/* Turns heads and stores keys and values, now or with attention. */
void turbok_cuda_turn(turbok_cuda *s, const turbok_cu_attn *at, const void *qkv, void *q);
/* Attention of `at`, with what was to be turned before it. */
void turbok_cuda_attend(turbok_cuda *s, const turbok_cu_attn *at, const void *q, void *out);
/* turbok_cuda_multiply, now or with the next op, with the norm before it where there is one. */
void turbok_cuda_product_of(turbok_cuda *s, const turbo_linear *w, const void *in, int32_t T,
                            int32_t out_dtype, void *out);
/* ops.c */
const turbo_ops *turbok_cuda_ops(const turbok_device *d);
/* steps.c */
enum { TURBOK_CUDA_VALUES = 3 * 256 * sizeof(float) }; /* bytes in front of pixels in `pictures` */
uint64_t turbok_cuda_steps_bytes(const turbok_device *d, const turbok_steps *s);
turbo_status turbok_cuda_steps_open(turbok_device *d, const turbok_steps *s, turbo_err *err);
void turbok_cuda_steps_close(turbok_device *d);
turbo_status turbok_cuda_step_begin(turbok_device *d, const turbo_batch *b, const turbok_row *rows,
                                    turbo_batch *as, bool *replay, turbo_err *err);
turbo_status turbok_cuda_step_end(turbok_device *d, float *logits, turbok_row *rows, int32_t R,
                                  float *host, turbo_err *err);
void turbok_cuda_step_drop(turbok_device *d);
turbo_status turbok_cuda_step_wait(turbok_device *d, turbok_row *rows, int32_t R, turbo_err *err);
/* draw.c */
size_t turbok_cuda_draw_bytes(const turbok_steps *s);
bool turbok_cuda_draw_open(turbok_device *d); /* false: no memory */
void turbok_cuda_draw_close(turbok_device *d);
bool turbok_cuda_draws(const turbok_device *d, const turbo_sample_params *p);
turbo_status turbok_cuda_place_begin(turbok_device *d, int32_t place, const turbo_sample_params *p,
                                     const int32_t *tokens, int32_t n_prompt, int32_t n,
                                     turbo_err *err);
/* What the rows of a step, padded to R, are asked for, into out [R]. */
void turbok_cuda_draw_rows(turbok_cuda *s, const turbok_row *rows, int32_t n, int32_t R,
                           turbok_cu_sample_row *out);
/* Draws: what the rows ask for lies on the device, [R]. Tokens and status come to `host`. */
void turbok_cuda_draw(turbok_cuda *s, const turbok_cu_sample_row *rows, int32_t R, float *logits,
                      int32_t *host);
/* Where tokens lie on the device until the next step draws. */
const int32_t *turbok_cuda_drawn(const turbok_cuda *s);

#endif
