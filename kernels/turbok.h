/* kernels/turbok.h: what the core sees of the kernel and KV-cache library.
 *
 * The library owns: a device (thread pool and chosen instruction set), weight handles in the
 * device's own layout, the KV pool and its block tables, and the op table (turbo_ops) that models
 * call. It knows nothing of requests, files or plugins. Letters as in turbo/plugin.h.
 * Threads: a device and everything made from it belong to one caller thread at a time (the engine
 * thread); the pool's workers are internal. Several devices may exist beside each other. */
#ifndef TURBOK_H
#define TURBOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

/* ---- device --------------------------------------------------------------------------------- */

typedef struct turbok_device turbok_device;

typedef enum {
    TURBOK_ISA_AUTO = 0,
    TURBOK_ISA_SCALAR,
    TURBOK_ISA_AVX2,
    TURBOK_ISA_AVX512, /* F, BW, DQ, VL */
    TURBOK_ISA_NEON /* of 64-bit ARM */
} turbok_isa;

typedef enum {
    TURBOK_ON_CPU = 0,
    TURBOK_ON_CUDA /* turbok-cuda.so, loaded at run time */
} turbok_on;

/* A card that need not be there. */
typedef struct turbok_card {
    const char *name;
    uint64_t memory; /* bytes, as its driver counts them */
    uint64_t context; /* of them, taken by opening it: driver, kernels, library */
    int32_t sm_count, major, minor; /* multiprocessors and compute capability */
} turbok_card;

typedef struct turbok_device_opts {
    turbok_on on;
    /* Of CUDA: which card; folders, separated by colons, where turbok-cuda.so is looked for; the type of
     * activations; bits that do not depend on the batch; no recorded steps. */
    int ordinal;
    const char *path;
    int32_t act_dtype;
    bool deterministic, no_graphs;
    /* Not NULL: no driver is opened and no card; the device only tells what things would take there, which is all it
     * may be asked for. */
    const turbok_card *card;
    turbok_isa
        isa; /* AUTO: the best this CPU has; a named one that is missing is TURBO_EUNSUPPORTED */
    int threads; /* 0: all CPUs this process may run on, at most 256 */
    bool pin; /* pin worker i to the i-th allowed CPU; the caller, thread 0, is left alone */
    int spin_us; /* how long an idle worker spins before it sleeps; -1: default (50) */
    bool
        exact; /* grids are stored as fp32 and multiplied as such: 4 to 8 times the memory; for tests */
} turbok_device_opts;

turbo_status turbok_device_open(const turbok_device_opts *opts, turbok_device **out,
                                turbo_err *err);
void turbok_device_close(
    turbok_device *d); /* NULL allowed; after all handles made from it are freed */
const char *turbok_device_name(const turbok_device *d); /* "cpu avx512, 2 threads" */
turbok_isa turbok_device_isa(const turbok_device *d);
int turbok_device_threads(const turbok_device *d);
const turbo_ops *turbok_device_ops(const turbok_device *d);
turbo_exec *turbok_device_exec(turbok_device *d);
/* Do its ops work on host memory? */
bool turbok_device_on_host(const turbok_device *d);
/* Free bytes of a device that has memory of its own; 0: it has none. */
uint64_t turbok_device_vacant(turbok_device *d);
/* Bytes that its driver took when it was opened, as measured then; 0 on the CPU. */
uint64_t turbok_device_context(const turbok_device *d);
/* Waits for everything that was asked of the device so far and tells the first error it had: whatever is copied to
 * or from it, or zeroed, is good only after OK. After an error it is done for, but not after TURBO_EDATA of a matrix whose
 * part was `later`. On the CPU always OK. */
turbo_status turbok_device_wait(turbok_device *d, turbo_err *err);
/* Before ops that belong to no step, as those of a tower for pictures: the calling thread asks for them. They are
 * done in order with steps begun before and after. */
turbo_status turbok_device_enter(turbok_device *d, turbo_err *err);
/* Zeroed memory that ops work on, and host memory for the other end of copies; NULL: there is no more. On the
 * CPU both are plain memory. The caller counts it. */
void *turbok_space_new(turbok_device *d, uint64_t bytes);
void turbok_space_free(turbok_device *d, void *p, uint64_t bytes); /* NULL allowed */
void *turbok_pinned_new(turbok_device *d, uint64_t bytes);
void turbok_pinned_free(turbok_device *d, void *p, uint64_t bytes);
const turbo_ops *turbok_cpu_ops(void); /* the table of every CPU device; constant */
/* The threads a device opened with this number gets: 0 is all CPUs this process may run on. */
int turbok_threads(int threads);

/* Memory of a device, by what it is for. Each kind has a pure function below that tells beforehand, to
 * the byte, what will be taken: turbok_linear_bytes and so on. */
typedef enum {
    TURBOK_MEM_LINEAR, /* matrices with their biases */
    TURBOK_MEM_VECTOR,
    TURBOK_MEM_ROPE,
    TURBOK_MEM_KV, /* blocks */
    TURBOK_MEM_KV_INDEX, /* reference counts, free list, prefix cache */
    TURBOK_MEM_SCRATCH, /* of the compute threads; lives as long as the device */
    TURBOK_MEM_KINDS
} turbok_mem;
/* Bytes of that kind that live on the device now. */
uint64_t turbok_device_mem(const turbok_device *d, turbok_mem kind);
/* All kinds but the device's own scratch: 0 when everything made from it has been freed. */
uint64_t turbok_device_alloc_bytes(const turbok_device *d);
/* Scratch of a device with that many threads for heads of that size; 0 on nonsense. */
uint64_t turbok_scratch_bytes(int threads, int32_t head_dim);

/* What the machine can do, measured with loops of no other purpose: bytes a second that all threads read
 * from memory, and fp32 operations a second (a multiply-add is two). Medians over rounds; buffer_bytes
 * should exceed the caches several times. Takes about rounds * 50 ms. */
typedef struct turbok_speed {
    double read_bytes_s, fma_flops;
} turbok_speed;
turbo_status turbok_measure(turbok_device *d, size_t buffer_bytes, int rounds, turbok_speed *out,
                            turbo_err *err);

/* Is each number finite? bytes of F32, F16 or BF16 at any alignment. Pure. */
bool turbok_all_finite(int32_t dtype, const void *p, size_t bytes);
bool turbok_finite_by(turbok_isa isa, int32_t dtype, const void *p, size_t bytes); /* with these */
/* What is said of a tensor, whose name it is given, that is not. */
#define TURBOK_NOT_FINITE "tensor %.120s holds NaN or infinity; the file is damaged: take it again"

/* So many bytes of weights are about to be taken: a device with memory of its own takes them at once, which is faster
 * than matrix by matrix, and gives them back when it closes. ENOMEM: it is full. Once, before any is made. */
turbo_status turbok_device_expect(turbok_device *d, uint64_t bytes, turbo_err *err);
/* Weights that went to a device with memory of its own: bytes as they lie there, the seconds in which the threads
 * filled buffers with them (reading, checking, packing), and those in which the caller waited for a buffer whose
 * copy was on its way. */
typedef struct turbok_copied {
    uint64_t bytes;
    double filling, waiting;
} turbok_copied;
turbok_copied turbok_device_copied(const turbok_device *d);
/* Where the environment has TURBO_CUDA_GAPS=1: microseconds from the end of a recorded step to the beginning of the next
 * one, by the device's clock, the first some thousand of them. *us is the device's; not while steps run. */
int32_t turbok_device_gaps(const turbok_device *d, const float **us);

/* Runs fn(ctx, i, n) for i = 0..n-1 on the pool, n = number of threads, and returns when all did.
 * For load-time work such as repacking or scanning. */
typedef void (*turbok_task)(void *ctx, int i, int n);
void turbok_parallel(turbok_device *d, turbok_task fn, void *ctx);

/* ---- weights ---------------------------------------------------------------------------------- */

/* Bytes that turbok_linear_new takes from the device for a matrix stored as dtype (for the plan). */
uint64_t turbok_linear_bytes(const turbok_device *d, int32_t dtype, int64_t out, int64_t in,
                             bool has_bias, uint32_t flags);
/* data: [out,in] row-major F32, F16 or BF16, any alignment, read only during the call.
 * bias: [out] of bias_dtype or NULL. flags: TURBO_LINEAR_TABLE when ops->embed will read it.
 * The handle keeps the stored type (no widening in memory) and repacks for the device once. */
turbo_status turbok_linear_new(turbok_device *d, int32_t dtype, const void *data, int64_t out,
                               int64_t in, const void *bias, int32_t bias_dtype, uint32_t flags,
                               turbo_linear **w, turbo_err *err);
/* The same for a matrix whose rows lie in n places: part after part, each [rows,in] of dtype, or a grid of
 * [rows,in]. Neighbours of one kind become one matrix (grids: equal but for what the pointers point to,
 * without perm); parts of several kinds are several matrices behind one handle, which costs a pass over the
 * activations for each. A part without bias has zeros there when another part has one. No copy is made
 * besides the handle. */
typedef struct turbok_grid turbok_grid;
/* Where numbers lie in a file that is open. mapped, not 0: `data` is a mapping of it which may be read as long as the
 * file, and to be taken from there; its pages are given back after it. */
typedef struct turbok_file {
    int32_t fd;
    int32_t mapped;
    uint64_t at;
} turbok_file;
typedef struct turbok_part {
    const void *data; /* NULL with a grid, unless the grid is still to be made */
    int64_t rows;
    const void *bias; /* [rows] of bias_dtype or NULL */
    int32_t bias_dtype;
    int32_t finite; /* not 0: data that holds NaN or infinity is refused with TURBO_EDATA */
    /* Or NULL. Codes NULL and data there: rows of dtype become bits and group of the grid, as
     * turbok_grid_quantize makes them. */
    const turbok_grid *grid;
    const turbok_file *file; /* or NULL; the same bytes as data, for who would rather read */
    int32_t dtype; /* of data that becomes a grid */
    /* Not 0, with a file and without a grid: a device may read it as late as turbok_device_wait, which then is what
     * refuses it; the file stays open until then, and mapped, and so do `name` and the matrix. */
    int32_t later;
    const char *name; /* or NULL; what it is called in such a refusal */
} turbok_part;
/* What turbok_linear_rows_new takes; of all pointers only which are NULL matters (data may be NULL). 0: the
 * device cannot store it, and err (NULL allowed) says why and what to do. */
uint64_t turbok_linear_rows_bytes(const turbok_device *d, int32_t dtype, const turbok_part *parts,
                                  int32_t n, int64_t in, uint32_t flags, turbo_err *err);
turbo_status turbok_linear_rows_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                    int32_t n, int64_t in, uint32_t flags, turbo_linear **w,
                                    turbo_err *err);
/* A quantised matrix [out,in] as its published layout says, its codes unpacked and in the order of rows: the
 * form that every reader of a format makes and that a device repacks from. One of three kinds:
 *   table:      W[o,i] = scale[o,g] * table[code[o,i]]
 *   zero:       W[o,i] = scale[o,g] * (code[o,i] - zero[o,g])
 *   else:       W[o,i] = scale[o,g] * (code[o,i] - offset) - (min ? min[o,g] : 0)
 * with g = i / group; products and differences in fp32, in this order, each rounded once. */
struct turbok_grid {
    int32_t bits; /* 8 or 4 */
    int32_t
        group; /* inputs that share a scale: a multiple of 16 that divides in; in: one scale a row */
    int32_t scale_dtype; /* TURBO_F32, _F16 or _BF16 */
    int32_t offset; /* 0..255 */
    const uint8_t
        *codes; /* 8 bits: [out,in]; 4 bits: [out,in/2], input 2i in the low half of byte i */
    const void *scale; /* [out,in/group] of scale_dtype */
    const uint8_t *zero; /* [out,in/group] or NULL */
    const float *min; /* [out,in/group] or NULL */
    const float *table; /* [2^bits] or NULL */
    const int32_t *perm; /* [in]: column k of codes belongs to input perm[k]; NULL: to input k */
    float
        outlier; /* above 0: inputs of at least this size are multiplied in fp32 (LLM.int8, arXiv 2208.07339) */
    /* Not 0: the model was made for inputs that are quantised as its codes are, to 8 bits with a scale for each
     * token, and for each group of the matrix where it has several. A device may do so. */
    int32_t coded_inputs;
};
/* Bytes that turbok_grid_new takes; of the pointers of g only which are NULL matters. 0: not possible. */
uint64_t turbok_grid_bytes(const turbok_device *d, const turbok_grid *g, int64_t out, int64_t in,
                           bool has_bias, uint32_t flags);
/* As turbok_linear_new. What g points to is read during the call only. Refuses scales and minima that are
 * not finite and a perm that is none with TURBO_EDATA, a group that does not divide with TURBO_EINVAL. The
 * handle works wherever one of turbok_linear_new does: linear, logits, gated_mlp, mlp, embed. On the CPU
 * activations become int8 by blocks of 32 (16) inputs, and products of codes are exact; tables that are no
 * multiples of small integers are multiplied in fp32. */
turbo_status turbok_grid_new(turbok_device *d, const turbok_grid *g, int64_t out, int64_t in,
                             const void *bias, int32_t bias_dtype, uint32_t flags, turbo_linear **w,
                             turbo_err *err);
/* Floats [rows,in] of dtype F32, F16 or BF16 to a grid, on all threads of the device: 8 bits symmetric, no
 * element off by more than half a scale; 4 bits symmetric, -8..7, the scale chosen for the least squared
 * error. Scales are bf16, with group == in fp32. What g points to is the caller's, one block, until
 * turbok_grid_quantize_free; its size is about that of the codes. TURBO_EDATA: a number is not finite. */
turbo_status turbok_grid_quantize(turbok_device *d, int32_t dtype, const void *data, int64_t rows,
                                  int64_t in, int32_t bits, int32_t group, turbok_grid *g,
                                  turbo_err *err);
void turbok_grid_quantize_free(turbok_grid *g);
/* Row o as fp32 [in]: the definition above, for tests, tools and tables. */
void turbok_grid_row(const turbok_grid *g, int64_t o, int64_t in, float *out);
void turbok_linear_free(turbok_device *d, turbo_linear *w);
/* A matrix of a CPU device as bytes, to be kept in a file and mapped at the next start. kind names everything
 * that such bytes depend on beside the weights: layout, build, instruction set, exactness; false: this device has no
 * images. bytes is what write hands to sink, piece by piece; sink answers false to end it. open makes a handle
 * that points into an image on a 64-byte boundary, which is only read and must outlive it; it is counted as if
 * it had been made here. *used: how many of the bytes it has. The caller vouches for the bytes (a checksum, a kind
 * that is equal); what is checked is that sizes fit together. TURBO_EDATA: they do not. */
typedef bool turbok_sink(void *ctx, const void *p, uint64_t n);
bool turbok_image_kind(const turbok_device *d, char *out, size_t cap);
uint64_t turbok_image_bytes(const turbo_linear *w);
bool turbok_image_write(const turbo_linear *w, turbok_sink *sink, void *ctx);
turbo_status turbok_image_open(turbok_device *d, const void *image, uint64_t bytes, uint64_t *used,
                               turbo_linear **w, turbo_err *err);
/* Beside the flags of turbo/plugin.h: the matrix is one of an expert. A backend refuses what its op `moe` cannot
 * multiply when it is asked for the bytes. */
#define TURBOK_LINEAR_EXPERT (1u << 31)
/* A layer of experts over matrices that stay the caller's and must outlive it: w [3n], gate, up and down of
 * each, of the shapes that m says, without biases. bytes: what the handle takes beside them; of m only
 * n_experts matters. TURBO_EINVAL: numbers of m outside their ranges. */
uint64_t turbok_experts_bytes(const turbok_device *d, const turbo_moe *m);
turbo_status turbok_experts_check(const turbo_moe *m, turbo_err *err);
turbo_status turbok_experts_new(turbok_device *d, const turbo_moe *m, const turbo_linear *const *w,
                                turbo_experts **out, turbo_err *err);
void turbok_experts_free(turbok_device *d, turbo_experts *x); /* NULL allowed */
int64_t turbok_linear_out(const turbo_linear *w);
int64_t turbok_linear_in(const turbo_linear *w);

uint64_t turbok_vector_bytes(int64_t n); /* 0: not possible, as for all of these */
turbo_status turbok_vector_new(turbok_device *d, int32_t dtype, const void *data, int64_t n,
                               turbo_vector **v, turbo_err *err);
void turbok_vector_free(turbok_device *d, turbo_vector *v);

uint64_t turbok_rope_bytes(const turbo_rope_spec *spec);
turbo_status turbok_rope_new(turbok_device *d, const turbo_rope_spec *spec, turbo_rope **r,
                             turbo_err *err);
void turbok_rope_free(turbok_device *d, turbo_rope *r);
/* The base that a sequence of fixed length rope_len gets: spec->base, or the enlarged one. Pure. */
double turbok_rope_base(const turbo_rope_spec *spec, int64_t rope_len);

/* ---- KV cache --------------------------------------------------------------------------------- */

/* One region of fixed blocks of block_tokens tokens, all layers of a token span in one block:
 * block b, layer l, K or V, kv head k, token t, lane d. The layout inside is the library's. */
typedef struct turbok_kv_pool turbok_kv_pool;

/* Types of cached numbers beside TURBO_F32, _F16 and _BF16: codes of 8 or 4 bits with a bf16 scale and a
 * bf16 zero for each token and head, K after RoPE. cpu/quant.h says how and why. */
enum { TURBOK_KV_INT8 = 0x108, TURBOK_KV_INT4 = 0x104 };

typedef struct turbok_kv_dims {
    int32_t n_layers; /* L */
    int32_t n_kv; /* K */
    int32_t head_dim; /* D */
    int32_t block_tokens; /* 8..1024, a multiple of 8 */
    int32_t dtype; /* TURBO_F32, _F16, _BF16, TURBOK_KV_INT8, or with an even head_dim _INT4 */
} turbok_kv_dims;

const char *turbok_kv_type_name(int32_t dtype); /* "bf16", "int8" ...; "?" for what is no type */
uint64_t turbok_kv_block_bytes(const turbok_kv_dims *dims); /* 0 on overflow or bad dims */
/* What a pool of n_blocks takes beside its blocks, with or without a prefix cache. */
uint64_t turbok_kv_index_bytes(const turbok_kv_dims *dims, int32_t n_blocks, bool prefix);
/* Takes n_blocks * block_bytes from the system at once (huge pages where possible). */
turbo_status turbok_kv_pool_new(turbok_device *d, const turbok_kv_dims *dims, int32_t n_blocks,
                                turbok_kv_pool **p, turbo_err *err);
void turbok_kv_pool_free(turbok_kv_pool *p);
int32_t turbok_kv_pool_total(const turbok_kv_pool *p);
int32_t turbok_kv_pool_block_tokens(const turbok_kv_pool *p);
const turbok_kv_dims *turbok_kv_pool_dims(const turbok_kv_pool *p);
/* free + cached + referenced == total. A cached block has no reference and is given out again when no
 * free one is left. */
int32_t turbok_kv_pool_free_count(const turbok_kv_pool *p);
int32_t turbok_kv_pool_cached_count(const turbok_kv_pool *p);
/* Reference counts: get takes a free block (count 1) or returns -1; ref adds one; put drops one. */
int32_t turbok_kv_block_get(turbok_kv_pool *p);
void turbok_kv_block_ref(turbok_kv_pool *p, int32_t block);
void turbok_kv_block_put(turbok_kv_pool *p, int32_t block);
int32_t turbok_kv_block_refs(const turbok_kv_pool *p, int32_t block);
/* A referenced block as bytes [block_bytes], in the library's layout. Any thread, while nobody writes it. */
void turbok_kv_block_read(const turbok_kv_pool *p, int32_t block, void *out);
void turbok_kv_block_write(turbok_kv_pool *p, int32_t block, const void *in);

/* kv/swap.c: blocks set aside in pinned host memory, of devices that have memory of their own: n_slots slots of a block
 * each, once, when the pool is made. EUNSUPPORTED: there is nothing to gain on this device. Copies are in the order of
 * steps; nobody waits for them. */
turbo_status turbok_kv_swap_new(turbok_kv_pool *p, int32_t n_slots, turbo_err *err);
int32_t turbok_kv_swap_total(const turbok_kv_pool *p); /* 0: there are none */
int32_t turbok_kv_swap_vacant(const turbok_kv_pool *p);
/* What a referenced block holds now goes into a free slot, which is returned; -1: none is free. */
int32_t turbok_kv_swap_out(turbok_kv_pool *p, int32_t block);
/* What lies in a slot goes into a referenced block. */
void turbok_kv_swap_in(turbok_kv_pool *p, int32_t slot, int32_t block);
void turbok_kv_swap_put(turbok_kv_pool *p, int32_t slot); /* the slot is free */

/* The block table of one sequence: which block holds tokens [i*block_tokens, (i+1)*block_tokens). */
typedef struct turbok_kv_table {
    int32_t *blocks; /* [cap] */
    int32_t n; /* blocks in use */
    int32_t cap;
    int32_t len; /* tokens stored */
} turbok_kv_table;

turbo_status turbok_kv_table_init(turbok_kv_table *t, const turbok_kv_pool *p, int32_t max_tokens,
                                  turbo_err *err); /* allocates cap once */
void turbok_kv_table_free(turbok_kv_table *t, turbok_kv_pool *p); /* also puts its blocks */
/* Makes room for n_tokens tokens in all, those from t->len on to be written: a block that is shared, or
 * whose cached content would be overwritten, is copied first. False, with nothing changed, when blocks
 * run out. */
bool turbok_kv_table_reserve(turbok_kv_table *t, turbok_kv_pool *p, int32_t n_tokens);
/* Blocks that reserve would take from the pool now. */
int32_t turbok_kv_table_needs(const turbok_kv_table *t, const turbok_kv_pool *p, int32_t n_tokens);
/* Forgets tokens from position n_tokens on and puts blocks that are no longer needed. */
void turbok_kv_table_truncate(turbok_kv_table *t, turbok_kv_pool *p, int32_t n_tokens);

/* ---- prefix cache ----------------------------------------------------------------------------- */

/* Names a text: a keyed hash of everything from its beginning on. key[0] = root, key[i+1] = chain(key[i],
 * tokens of block i). Pure functions of the pool's secret: any thread. */
typedef struct turbok_kv_key {
    uint64_t lo, hi;
} turbok_kv_key;

turbo_status turbok_kv_prefix_enable(turbok_kv_pool *p,
                                     turbo_err *err); /* once, before any block is used */
/* salt: whatever must be equal for two texts to share blocks. */
turbok_kv_key turbok_kv_root(const turbok_kv_pool *p, const void *salt, size_t n);
/* tokens [block_tokens]; extra: digests of inputs other than tokens inside this block (pictures). */
turbok_kv_key turbok_kv_chain(const turbok_kv_pool *p, turbok_kv_key parent, const int32_t *tokens,
                              const void *extra, size_t n_extra);
/* Block holds the first n tokens of the text that follows parent. key: of a full block (n is block_tokens),
 * NULL for a partial one. extra: the block also depends on other inputs; then only its key finds it.
 * ready = false announces what is going to be computed. Publishing again replaces. Without a prefix
 * cache nothing happens. */
void turbok_kv_publish(turbok_kv_pool *p, int32_t block, turbok_kv_key parent,
                       const turbok_kv_key *key, const int32_t *tokens, int32_t n, bool extra,
                       bool ready);
/* Forgets what a referenced block holds, for instance because it came from a step that failed. */
void turbok_kv_withdraw(turbok_kv_pool *p, int32_t block);
/* Puts into the empty table t the blocks of the longest cached beginning of tokens [n], and returns its
 * length, to the token; the last block may be shared in part, if it begins at plain_from or behind it: from
 * there on the text is nothing but tokens.
 * *soon: the length that will be found once what is announced has been computed. */
int32_t turbok_kv_match(turbok_kv_pool *p, turbok_kv_table *t, const turbok_kv_key *keys,
                        const int32_t *tokens, int32_t n, int32_t plain_from, int32_t *soon);

/* SipHash-2-4-128, in pieces. */
typedef struct turbok_hash {
    uint64_t v[4], held, total;
    int n_held;
} turbok_hash;
void turbok_hash_init(turbok_hash *h, turbok_kv_key key);
void turbok_hash_add(turbok_hash *h, const void *data, size_t n);
turbok_kv_key turbok_hash_end(turbok_hash *h);

/* ---- batches ------------------------------------------------------------------------------------ */

/* What turbo_batch.kv points to on this library's devices: S tables, in the order of sequences. */
struct turbo_kv {
    turbok_kv_pool *pool;
    turbok_kv_table *const *tables; /* [S] */
};

/* The largest step there will be. */
typedef struct turbok_steps {
    int32_t max_tokens, max_seqs, max_len; /* max_len: of a sequence */
    int32_t n_heads, head_dim, embed_dim, vocab;
    int32_t block_tokens, n_layers;
    bool quantised; /* some matrix is a grid */
    uint64_t picture_bytes; /* pixels of one picture that patches() is given; 0: none */
} turbok_steps;

/* A device may draw tokens itself, so that logits need not leave it. What it must know of a sequence for that
 * is kept at a place, 0 .. max_seqs-1, that the caller gives to one running sequence at a time. */
typedef struct turbok_row {
    int32_t place; /* whose sequence the device draws for; -1: the logits go to the host */
    /* Out, when it draws: 0..V-1, or -1 with status TURBO_EDATA, when the logits are no numbers. */
    int32_t token;
    turbo_status status;
} turbok_row;
/* The id of the sampler whose tokens it draws, to the bit; NULL: it draws none. */
const char *turbok_draws_as(const turbok_device *d);
/* Does it draw for these parameters? Not with logprobs or a program, which need the logits on the host, and not
 * when bias, stop ids and bad words together have more numbers than a place has room for. Any thread. */
bool turbok_draws(const turbok_device *d, const turbo_sample_params *p);
/* place now belongs to a sequence with these n tokens, the first n_prompt of which are the prompt. What p and
 * tokens point to is read during the call only. Before step_begin of its first step with a row. */
turbo_status turbok_place_begin(turbok_device *d, int32_t place, const turbo_sample_params *p,
                                const int32_t *tokens, int32_t n_prompt, int32_t n, turbo_err *err);

/* What a device takes for steps of that size (TURBOK_MEM_SCRATCH): inputs, split attention, products, places.
 * Pure; 0 on the CPU, whose scratch is made with the device. */
uint64_t turbok_steps_bytes(const turbok_device *d, const turbok_steps *s);
/* What has to be left free for it beside that: steps that it records while it runs, and the places that weights are
 * rounded up to. Pure; 0 on the CPU. */
uint64_t turbok_later_bytes(const turbok_device *d, const turbok_steps *s);
/* Once, after the weights and before the first step. */
turbo_status turbok_steps_open(turbok_device *d, const turbok_steps *s, turbo_err *err);
/* Around the forward() of a step: begin brings the inputs to the device and says what forward() is to be
 * called with, *as, whose n_rows is that of logits; when *replay is set it is not to be called. rows [n_rows],
 * or NULL: all logits go to the host; the same in all three calls. end draws, and of the other rows copies the
 * logits to host memory (pinned, [R,V]); wait returns when both are done. On the CPU as is b, and end and wait do
 * nothing: logits is host memory. After an error of theirs the device is done for. When begin or forward() failed,
 * drop comes in place of end and wait, and waits for what was launched: nothing of the step is left to the next.
 * A device that draws may be given one step more before the wait of the step before, when all rows of that
 * one are drawn. A token of the batch may then be ~r: what row r of the step before draws. Waits are in order. */
turbo_status turbok_step_begin(turbok_device *d, const turbo_batch *b, const turbok_row *rows,
                               turbo_batch *as, bool *replay, turbo_err *err);
turbo_status turbok_step_end(turbok_device *d, float *logits, turbok_row *rows, int32_t R,
                             float *host, turbo_err *err);
void turbok_step_drop(turbok_device *d);
turbo_status turbok_step_wait(turbok_device *d, turbok_row *rows, int32_t R, turbo_err *err);

/* Reads back one token's K or V of a layer as fp32 [K,D]; for tests and tools. */
void turbok_kv_read(const turbok_kv_pool *p, const turbok_kv_table *t, int32_t layer, int32_t pos,
                    bool value, float *out);

#endif
