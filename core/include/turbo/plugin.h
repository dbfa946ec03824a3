/* turbo/plugin.h: the plugin ABI of turbod. The only header a plugin author needs.
 *
 * A plugin is a shared object that exports one function, turbo_plugin_entry(), and returns a static
 * const descriptor. It may offer models, tokenizers and samplers. There is nothing to link: whatever
 * a plugin calls reaches it through turbo_host (services) and turbo_ops (kernels).
 *
 * Rules of the border
 *   Growth     Structs are append-only and have no padding; `size` is plain sizeof at the builder's
 *              side. The host copies min(size) of each struct into a zeroed one of its own size, so
 *              a slot the plugin does not know is NULL. A new field raises TURBO_ABI_MINOR.
 *   Ownership  Who creates destroys. Pointers handed into a call are valid during the call only,
 *              unless the text of the slot says otherwise.
 *   Errors     A turbo_status: 0 or negative. On failure the callee fills turbo_err with one line
 *              that says what was found, what was expected and what to do. No abort, exit, longjmp
 *              or C++ exception crosses the border.
 *   Threads    Each slot carries a tag. [main] during start-up and shutdown, one thread at a time.
 *              [engine] the model's engine thread. [any] several threads at once.
 *   Letters    B batch, S sequences, T tokens, R rows with logits, H query heads, K key/value heads,
 *              D head size, E model width, I inner width of the MLP, V vocabulary, L layers.
 *              `act` is the activation type of the backend, turbo_ops.act_dtype: F32 on the CPU.
 */
#ifndef TURBO_PLUGIN_H
#define TURBO_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TURBO_PLUGIN_MAGIC 0x6f627274u /* "trbo", little-endian */
#define TURBO_ABI_MAJOR 1
#define TURBO_ABI_MINOR 2
#define TURBO_HOST_ABI (((uint32_t)TURBO_ABI_MAJOR << 16) | TURBO_ABI_MINOR)
#define TURBO_EXPORT __attribute__((visibility("default")))

/* ---- status and errors -------------------------------------------------------------------- */

typedef int32_t turbo_status;
enum {
    TURBO_OK = 0,
    TURBO_EINVAL = -1,       /* an argument or a configuration value is out of range            */
    TURBO_ENOMEM = -2,       /* memory or KV blocks ran out                                     */
    TURBO_EUNSUPPORTED = -3, /* understood, and not something this build or plugin does         */
    TURBO_EDATA = -4,        /* a model, tokenizer or script file is damaged or inconsistent    */
    TURBO_ENOENT = -5,       /* a file, tensor or token that was asked for does not exist       */
    TURBO_EIO = -6,          /* the operating system refused to read or write                   */
    TURBO_ELIMIT = -7,       /* a documented limit would be exceeded; also "buffer too small"   */
    TURBO_EABI = -8,         /* the two sides of the border were built against other headers    */
    TURBO_ECANCELLED = -9,   /* the caller gave up                                              */
    TURBO_EBUSY = -10,       /* try again later: queue full, draining                           */
    TURBO_EINTERNAL = -11,   /* a defect of turbod or of a plugin                               */
};

typedef struct turbo_err {
    char text[256]; /* one line, NUL-terminated, valid UTF-8, no trailing newline */
} turbo_err;

enum { TURBO_LOG_ERROR, TURBO_LOG_WARN, TURBO_LOG_INFO, TURBO_LOG_DEBUG };

/* ---- types of stored and computed numbers ------------------------------------------------- */

enum {
    TURBO_F32 = 0,
    TURBO_F16 = 1,
    TURBO_BF16 = 2,
    TURBO_I8 = 3,
    TURBO_I32 = 4,
    TURBO_U8 = 5,
    TURBO_I64 = 6,
};

/* ---- handles the host owns ---------------------------------------------------------------- */

typedef struct turbo_config turbo_config;   /* config.json and generation_config.json, parsed   */
typedef struct turbo_weights turbo_weights; /* the tensors of a model folder, by name           */
typedef struct turbo_linear turbo_linear;   /* a weight matrix as the backend stores it         */
typedef struct turbo_vector turbo_vector;   /* a norm weight or bias as the backend stores it   */
typedef struct turbo_rope turbo_rope;       /* rotary tables                                    */
typedef struct turbo_kv turbo_kv;           /* the KV cache of the sequences of a batch         */
typedef struct turbo_exec turbo_exec;       /* where kernels run: thread pool or stream         */
typedef struct turbo_experts turbo_experts; /* since 1.2: the matrices of a layer of experts    */

/* ---- a batch ------------------------------------------------------------------------------- */

/* A ragged batch: the new tokens of S sequences, one after another. Prefill chunks and decodes
 * share it. All arrays are host memory, owned by the engine, valid during forward().
 * Sequence s owns tokens cu_seqlens[s] .. cu_seqlens[s+1]-1, in order of position.
 * A token below 0 is one that a device is still drawing: ops->embed knows it. */
typedef struct turbo_batch {
    uint32_t size;
    int32_t n_tokens;            /* T >= 1                                                     */
    int32_t n_seqs;              /* S >= 1                                                     */
    int32_t n_rows;              /* R >= 0: rows whose logits are wanted                       */
    const int32_t *tokens;       /* [T] ids, each in 0..V-1; ignored where embed_row[t] >= 0   */
    const int32_t *positions;    /* [T] position inside the sequence, from 0                   */
    const int32_t *cu_seqlens;   /* [S+1] from 0 to T                                          */
    const int32_t *kv_lens;      /* [S] tokens in the cache once this batch is stored          */
    const int32_t *rope_lens;    /* [S] length that fixes a length-dependent RoPE base         */
    const int32_t *row_index;    /* [R] token index 0..T-1 of each wanted row                  */
    const void *embed_rows;      /* [*,E] act, rows of another modality, or NULL               */
    const int32_t *embed_index;  /* [T] row of embed_rows, or -1; NULL when embed_rows is NULL */
    turbo_kv *kv;                /* where the keys and values of the S sequences live          */
    void *workspace;             /* 64-byte aligned scratch memory of the backend              */
    uint64_t workspace_bytes;    /* at least what model->workspace() asked for                 */
} turbo_batch;

/* ---- kernels -------------------------------------------------------------------------------- */

enum { TURBO_ROPE_HALF = 0, TURBO_ROPE_INTERLEAVED = 1 };
enum {
    TURBO_ROPE_PLAIN = 0,
    TURBO_ROPE_LINEAR = 1,
    TURBO_ROPE_DYNAMIC = 2,
    TURBO_ROPE_BANDS = 3, /* since 1.1 */
    TURBO_ROPE_YARN = 4, /* since 1.1 */
};
enum { TURBO_ACT_SILU = 0, TURBO_ACT_GELU_ERF = 1, TURBO_ACT_GELU_TANH = 2, TURBO_ACT_QUICK_GELU = 3 };

/* Rotary embedding. angle = pos * base^(-2i/dim), i = 0..dim/2-1 (RoFormer, arXiv 2104.09864).
 * LINEAR divides the angle by factor. DYNAMIC replaces base, for a sequence whose rope_len S exceeds
 * max_position M, by base * (factor*S/M - (factor-1))^(dim/(dim-2)); S is fixed for a sequence, so
 * that every key of it carries the same rotation.
 * BANDS, O = original_max, w = 2*pi/f the wavelength of a frequency f: f stays where w < O/high_freq,
 * f/factor where w > O/low_freq, and (1-t)*f/factor + t*f between, t = (O/w - low_freq) / (high_freq -
 * low_freq).
 * YARN (arXiv 2309.00071): f/factor*r + f*(1-r), r = clamp((i-a)/(b-a), 0, 1), a = c(beta_fast) and b =
 * c(beta_slow) with c(n) = dim*ln(O/(2*pi*n))/(2*ln base), rounded outwards when truncate is set, and held
 * inside 0..dim-1; cos and sin are multiplied by attention_factor. */
typedef struct turbo_rope_spec {
    uint32_t size;
    int32_t style;        /* TURBO_ROPE_HALF or _INTERLEAVED                          */
    int32_t scaling;      /* TURBO_ROPE_PLAIN, _LINEAR, _DYNAMIC                      */
    int32_t dim;          /* rotated dimensions of a head, even, <= D                 */
    int32_t max_position; /* M of the model; also the length of the precomputed table */
    float factor;         /* of the scaling; 1 when PLAIN                             */
    double base;          /* theta                                                    */
    /* Since 1.1. Read for BANDS and YARN only. */
    int32_t original_max; /* O >= 1: length before the scaling */
    float low_freq; /* BANDS: 0 < low_freq < high_freq */
    float high_freq;
    float beta_fast; /* YARN: 32 unless the model says otherwise, > 0 */
    float beta_slow; /* YARN: 1 likewise */
    float attention_factor; /* YARN: of cos and sin; 0: 0.1 ln(factor) + 1 */
    int32_t truncate; /* YARN: 1 as published, 0 keeps the limits unrounded */
    int32_t reserved;
} turbo_rope_spec;

enum {
    TURBO_QKV_PLAIN = 0,   /* row of the projection: Q heads, then K heads, then V heads          */
    TURBO_QKV_GROUPED = 1, /* for each K head g: its H/K query heads, then K head g, then V head g */
};

/* One attention layer as a model sees it. */
typedef struct turbo_attn {
    uint32_t size;
    int32_t layer;     /* 0..L-1, selects the layer of the KV cache          */
    int32_t n_heads;   /* H                                                  */
    int32_t n_kv;      /* K, divides H                                       */
    int32_t head_dim;  /* D                                                  */
    int32_t layout;    /* TURBO_QKV_*, of the projection's output            */
    int32_t window;    /* sliding window in tokens, itself included; 0 none  */
    float scale;       /* of q.k, usually D^-0.5                             */
    const turbo_rope *rope; /* NULL: no rotation                             */
} turbo_attn;

enum { TURBO_FULL_HEAD = 256 }; /* largest head of attention_full */

enum { TURBO_MOE_EXPERTS = 1024, TURBO_MOE_CHOSEN = 128 }; /* most of a layer, most of a token */

/* Since 1.2. The MLP of a layer as n experts, of which each token passes k. An expert is
 * down( act(gate(x)) * up(x) ) with I numbers inside. The scores of a token are softmax(router(x)) over
 * all n, in fp32. Its k best experts count, of equal scores the one of the lower number; each is
 * multiplied by its score, which is divided by the sum of the k when normalise is 1. */
typedef struct turbo_moe {
    uint32_t size;
    int32_t n_experts; /* n: 1..TURBO_MOE_EXPERTS */
    int32_t n_chosen; /* k: 1..n, at most TURBO_MOE_CHOSEN */
    int32_t inner; /* I of one expert */
    int32_t width; /* E */
    int32_t act; /* TURBO_ACT_* */
    int32_t normalise; /* 1: the k scores are made to add up to 1 */
    int32_t reserved;
} turbo_moe;

/* Bytes of scratch of ops->moe for T tokens on a backend whose activations take act_bytes each. */
static inline uint64_t turbo_moe_scratch(const turbo_moe *m, int32_t T, int32_t act_bytes)
{
    uint64_t tokens = (uint64_t)T, n = (uint64_t)m->n_experts;
    uint64_t k = m->n_chosen > 2 ? (uint64_t)m->n_chosen : 2;
    uint64_t row = ((uint64_t)m->width + (uint64_t)m->inner) * (uint64_t)act_bytes + 32;
    return tokens * (k * row + 4 * n) + 64 * n + 8192;
}

/* The kernel table of a backend. Every function runs on `x` (in order), neither allocates nor
 * synchronises, and treats its inputs as already checked by the model. Outputs may not overlap
 * inputs unless stated. [engine] all.
 * The result of a row depends on that row's inputs only, never on T, S or its neighbours: the bits
 * are the same alone or batched (CPU backend; on CUDA with deterministic = true). */
typedef struct turbo_ops {
    uint32_t size;
    int32_t act_dtype; /* TURBO_F32 on the CPU */
    /* out[t] = table[tokens[t]], or embed_rows[embed_index[t]].     out [T,E] act; table is [V,E]. */
    void (*embed)(turbo_exec *x, const turbo_linear *table, const turbo_batch *b, void *out);
    /* h += delta (if delta != NULL), then out = RMSNorm(h) * w. h, delta, out [T,E] act. out may be
     * delta. Source: arXiv 1910.07467; statistics in fp32. */
    void (*rmsnorm)(turbo_exec *x, void *h, const void *delta, const turbo_vector *w, float eps,
                    int32_t T, int32_t E, void *out);
    /* y = x W^T + bias of the handle.                               in [T,in] act, out [T,out] act */
    void (*linear)(turbo_exec *x, const turbo_linear *w, const void *in, int32_t T, void *out);
    /* Splits qkv by a->layout, rotates Q and K at b->positions, appends K and V to the cache.
     * qkv [T,(H+2K)*D] act, q [T,H,D] act. Afterwards qkv holds no numbers. */
    void (*qkv_rope_store)(turbo_exec *x, const turbo_attn *a, const turbo_batch *b,
                           const void *qkv, void *q);
    /* Causal attention of each new token over the cache of its sequence. q, out [T,H,D] act. */
    void (*attention)(turbo_exec *x, const turbo_attn *a, const turbo_batch *b, const void *q,
                      void *out);
    /* out = down( act(gate(in)) * up(in) ). in, out [T,E] act; scratch [T,2*I] act. */
    void (*gated_mlp)(turbo_exec *x, const turbo_linear *gate, const turbo_linear *up,
                      const turbo_linear *down, int32_t act, const void *in, int32_t T,
                      void *scratch, void *out);
    /* out[r] = in[index[r]].                                         in [T,E], out [R,E] act */
    void (*gather)(turbo_exec *x, const void *in, const int32_t *index, int32_t R, int32_t E,
                   void *out);
    /* logits = in W^T + bias, always fp32.                           in [R,E] act, out [R,V] f32 */
    void (*logits)(turbo_exec *x, const turbo_linear *head, const void *in, int32_t R, float *out);

    /* Since 1.1, for towers that look at whole pictures. N pictures of P patches each. */
    /* h += delta (if delta != NULL), then out = (h - mean(h)) / sqrt(var(h) + eps) * w + bias. h, delta,
     * out [T,E] act. out may be delta. Source: arXiv 1607.06450; statistics in fp32. */
    void (*layernorm)(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                      const turbo_vector *bias, float eps, int32_t T, int32_t E, void *out);
    /* out = down( act(up(in)) ).        in [T,up.in], scratch [T,up.out], out [T,down.out] act. */
    void (*mlp)(turbo_exec *x, const turbo_linear *up, const turbo_linear *down, int32_t act,
                const void *in, int32_t T, void *scratch, void *out);
    /* Attention in which each token sees all T tokens of its picture, and no other's. qkv [N,T,3,H,D]
     * act, out [N,T,H,D] act; D at most TURBO_FULL_HEAD. scale of q.k, usually D^-0.5. */
    void (*attention_full)(turbo_exec *x, const void *qkv, int32_t N, int32_t T, int32_t H,
                           int32_t D, float scale, void *out);
    /* Pictures to rows for the matrix of a convolution whose stride is its size: out[n, (y,x), (c,i,j)] =
     * value[c][pixels[n, y*size+i, x*size+j, c]]. pixels [N,height,width,3] and value [3,256] are host
     * memory; rows and columns beyond whole patches are left out. out [N,P,3*size*size] act. */
    void (*patches)(turbo_exec *x, const uint8_t *pixels, int32_t N, int32_t height, int32_t width,
                    int32_t size, const float *value, void *out);
    /* out[n,0] = first + position[0], out[n,1+p] = in[n,p] + position[1+p]. first [E], position
     * [(1+P)*E], in [N,P,E], out [N,1+P,E] act. */
    void (*position_rows)(turbo_exec *x, const void *in, const turbo_vector *first,
                          const turbo_vector *position, int32_t N, int32_t P, int32_t E, void *out);
    /* h += delta.                                                    h, delta [T,E] act */
    void (*add)(turbo_exec *x, void *h, const void *delta, int32_t T, int32_t E);

    /* Since 1.2. */
    /* out[t] = sum of score[t,e] * down_e( act(gate_e(in[t])) * up_e(in[t]) ) over the k experts e of
     * token t, as turbo_moe says. router is [n,E]. in, out [T,E] act; scratch: 64-byte aligned, bytes as
     * turbo_moe_scratch() says. */
    void (*moe)(turbo_exec *x, const turbo_linear *router, const turbo_experts *w, const void *in,
                int32_t T, void *scratch, void *out);
    /* h[t] += sigmoid(in[t] . w) * delta[t].                         h, delta, in [T,E] act; w [E] */
    void (*add_gated)(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                      const void *in, int32_t T, int32_t E);
    /* Before qkv_rope_store: RMSNorm of each query head by q and of each key head by k, in place.
     * qkv [T,(H+2K)*D] act by a->layout; q, k [D]. */
    void (*head_norm)(turbo_exec *x, const turbo_attn *a, const turbo_vector *q,
                      const turbo_vector *k, float eps, int32_t T, void *qkv);
} turbo_ops;

/* ---- what the host offers ------------------------------------------------------------------- */

enum {
    TURBO_LINEAR_OPTIONAL_BIAS = 1u, /* take "<name>.bias" if it exists                          */
    TURBO_LINEAR_BIAS = 2u, /* "<name>.bias" must exist                                 */
    TURBO_LINEAR_TABLE = 4u, /* will be used by ops->embed (may also serve as a head)    */
    TURBO_LINEAR_AS_STORED = 8u, /* since 1.2: the option `quantize` passes it by            */
};

struct turbo_model_vtbl; /* below */

typedef struct turbo_host {
    uint32_t size;
    uint32_t abi; /* TURBO_HOST_ABI of the host */
    /* One line to the log. text is copied. [any] */
    void (*log)(int32_t level, const char *plugin_id, const char *text);

    /* Reading config.json. A path is dotted, "rope_scaling.factor", an array element is "eos.0".
     * Absent key or JSON null: the default is stored and 0 returned. A value of another type or
     * outside lo..hi is TURBO_EDATA with a text that names key, value and range. [any] */
    turbo_status (*cfg_int)(const turbo_config *c, const char *path, int64_t dflt, int64_t lo,
                            int64_t hi, int64_t *out, turbo_err *err);
    turbo_status (*cfg_num)(const turbo_config *c, const char *path, double dflt, double lo,
                            double hi, double *out, turbo_err *err);
    turbo_status (*cfg_bool)(const turbo_config *c, const char *path, int32_t dflt, int32_t *out,
                             turbo_err *err);
    /* *out points into the config and lives as long as it; dflt may be NULL. */
    turbo_status (*cfg_str)(const turbo_config *c, const char *path, const char *dflt,
                            const char **out, turbo_err *err);
    /* 1 when the key exists and is not null. */
    int32_t (*cfg_has)(const turbo_config *c, const char *path);
    /* Elements of an array, members of an object, -1 for anything else. */
    int64_t (*cfg_len)(const turbo_config *c, const char *path);

    /* Weights, as handles of the backend. Only inside open(); owned by the host, valid until the
     * model is closed. `name` is without ".weight"/".bias". Shapes are checked again here; a matrix
     * may be stored with more dimensions, [out, ...], whose product is in_dim. A memory plan opens and
     * closes a model to count what it asks for: no handle may be computed with inside open(), and the
     * same must be asked for every time. [main] */
    turbo_status (*linear)(turbo_weights *w, const char *name, int64_t out_dim, int64_t in_dim,
                           uint32_t flags, const turbo_linear **handle, turbo_err *err);
    turbo_status (*vector)(turbo_weights *w, const char *name, int64_t n,
                           const turbo_vector **handle, turbo_err *err);
    turbo_status (*rope)(turbo_weights *w, const turbo_rope_spec *spec, const turbo_rope **handle,
                         turbo_err *err);
    /* 1 when a tensor of that full name ("...weight") is in the folder. */
    int32_t (*has_tensor)(const turbo_weights *w, const char *name);

    /* Reading a file of the model folder whole, for tokenizers. name is a plain file name. The
     * bytes are owned by the caller, to be released with file_free. Files above max_bytes are
     * TURBO_ELIMIT, absent ones TURBO_ENOENT. [any] */
    turbo_status (*file_read)(const char *folder, const char *name, uint64_t max_bytes,
                              uint8_t **bytes, uint64_t *len, turbo_err *err);
    void (*file_free)(uint8_t *bytes);
    /* Parses a JSON file of the model folder (strict, depth 64) for the cfg_* calls above. */
    turbo_status (*json_open)(const char *folder, const char *name, turbo_config **out,
                              turbo_err *err);
    void (*json_close)(turbo_config *c);
    /* Name of member i of the object at path; NULL when there is none. */
    const char *(*cfg_key)(const turbo_config *c, const char *path, int64_t i);
    /* Since 1.1. One matrix of several tensors: the rows of names[0], then those of names[1], ...,
     * names[n-1]; names[i].weight is [rows[i], in_dim]. With TURBO_LINEAR_BIAS every part has a bias,
     * with _OPTIONAL_BIAS a part without one counts as zeros. All parts are stored in the same type
     * (TURBO_EUNSUPPORTED otherwise). The memory is that of one matrix of sum(rows) rows, nothing
     * else; expect() says so with turbo_tensor_spec.group. 1 <= n <= 8. Only inside open(). [main] */
    turbo_status (*linear_rows)(turbo_weights *w, const char *const *names, const int64_t *rows,
                                int32_t n, int64_t in_dim, uint32_t flags,
                                const turbo_linear **handle, turbo_err *err);

    /* For a model that holds another one. */
    /* A vector by its full tensor name, of any shape with n elements. Only inside open(). [main] */
    turbo_status (*vector_of)(turbo_weights *w, const char *tensor, int64_t n,
                              const turbo_vector **handle, turbo_err *err);
    /* The object at path, "" for all of c, as a config of its own; "generation" stays that of c. arch,
     * when not NULL, is what its architectures.0 says, and its model_type is absent. Lives as long as
     * c; json_close frees it. TURBO_ENOENT when there is none. [any] */
    turbo_status (*cfg_sub)(const turbo_config *c, const char *path, const char *arch,
                            turbo_config **out, turbo_err *err);
    /* A JSON file of the folder that c was read from, or, when folder is not "", of a folder of that
     * name inside it or beside it. Plain names only. json_close frees it. [any] */
    turbo_status (*cfg_file)(const turbo_config *c, const char *folder, const char *file,
                             turbo_config **out, turbo_err *err);
    /* The model of whatever plugin claims the config. Its table lives for ever. [any] */
    turbo_status (*model_for)(const turbo_config *c, const struct turbo_model_vtbl **out,
                              turbo_err *err);
    /* The tensors of w under other names: the first from[i] that a name begins with is replaced by
     * to[i] before it is looked up. Owned by w. Only inside open(). [main] */
    turbo_status (*weights_view)(turbo_weights *w, const char *const *from, const char *const *to,
                                 int32_t n, turbo_weights **out, turbo_err *err);
    /* The tensors of another folder, named as in cfg_file. Owned by w. Only inside open(). [main] */
    turbo_status (*weights_beside)(turbo_weights *w, const char *folder, turbo_weights **out,
                                   turbo_err *err);

    /* Since 1.2. The experts of a layer. gate, up and down are names as of linear(), in which '#' stands
     * for the number of the expert, 0..n-1: matrices [I,E], [I,E] and [E,I] without biases. Numbers of m
     * outside their ranges are TURBO_EINVAL. Only inside open(). [main] */
    turbo_status (*experts)(turbo_weights *w, const turbo_moe *m, const char *gate, const char *up,
                            const char *down, const turbo_experts **handle, turbo_err *err);
} turbo_host;

/* ---- models --------------------------------------------------------------------------------- */

/* Dimensions, from config.json alone: enough for a memory plan. */
typedef struct turbo_model_info {
    uint32_t size;
    int32_t n_layers;
    int32_t n_heads;
    int32_t n_kv;
    int32_t head_dim;
    int32_t embed_dim;    /* E */
    int32_t mlp_dim;      /* I */
    int32_t vocab;        /* V: rows of the head */
    int32_t max_position; /* longest sequence the model was made for */
    int32_t dtype;        /* TURBO_* of torch_dtype */
    int32_t bos;          /* -1: none */
    int32_t n_eos;        /* 0..16 */
    int32_t eos[16];
    char arch[32];        /* name shown to people */
    char chat[32];        /* name of the chat template, scripts/chat/<chat>.lua; "" when a base model */
    /* Since 1.1. The model that computes the language half, for workspace(); NULL: this one. */
    const struct turbo_model_vtbl *inner;
    /* Since 1.2. Of layers of experts; 0 when there are none. */
    int32_t n_experts;
    int32_t n_chosen;
    int32_t expert_dim; /* I of one expert */
    int32_t shared_dim; /* I of an MLP that every token passes beside them */
} turbo_model_info;

/* One tensor the architecture needs. */
typedef struct turbo_tensor_spec {
    uint32_t size;
    int32_t ndim;         /* 1..4 */
    int64_t dims[4];
    const char *name;     /* full name, with ".weight" */
    int32_t optional;     /* 1: may be absent */
    int32_t reserved;
    /* Since 1.1. Tensors of one group > 0 become one matrix of linear_rows(): emitted without another
     * tensor between, weights first, in the order of the rows, then their biases. 0: on its own. */
    int32_t group;
    int32_t reserved2;
    const char *alias; /* full name of the tensor to take when `name` is absent, or NULL */
    const char *alias2; /* and when that is absent too */
} turbo_tensor_spec;
typedef turbo_status (*turbo_expect_fn)(void *ctx, const turbo_tensor_spec *spec);

typedef struct turbo_model_vtbl {
    uint32_t size;
    uint32_t reserved;
    const char *id; /* unique, [a-z0-9-]{1,31} */
    /* Does this config.json belong to me? 0 no; more is surer (100 = architectures matched). [any] */
    int32_t (*probe)(const turbo_host *h, const turbo_config *c);
    /* Dimensions; checks every key it reads. Reads no weights. [any] */
    turbo_status (*describe)(const turbo_host *h, const turbo_config *c, turbo_model_info *out,
                             turbo_err *err);
    /* Calls emit once for each tensor of the architecture; stops when emit returns non-zero. The
     * host compares the table with the folder before anything is allocated. [any] */
    turbo_status (*expect)(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                           void *ctx, turbo_err *err);
    /* Bytes of scratch that forward() needs for T tokens and R rows on a backend whose activations
     * take act_bytes each. A pure function; grows with T and R. [any] */
    uint64_t (*workspace)(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                          int32_t act_bytes);
    /* Takes its handles from w. [main] */
    turbo_status (*open)(const turbo_host *h, const turbo_config *c, turbo_weights *w,
                         const turbo_ops *ops, void **model, turbo_err *err);
    void (*close)(void *model); /* [main]; NULL is allowed */
    /* logits [R,V] f32, host memory on the CPU backend. Neither allocates nor synchronises. Cannot
     * fail for a batch the engine has checked. [engine] */
    turbo_status (*forward)(void *model, turbo_exec *x, const turbo_batch *b, float *logits,
                            turbo_err *err);
} turbo_model_vtbl;

/* ---- tokenizers ------------------------------------------------------------------------------ */

enum {
    TURBO_TOK_TRUSTED = 1u, /* encode: names of special tokens in the text become those tokens     */
    TURBO_TOK_FIRST = 2u,   /* encode: the text starts a document (dummy prefix applies, if any).
                               piece: no piece that is not a control token came before             */
    TURBO_TOK_EMPTY = 4u,   /* piece: the decoded text is still empty                              */
};
enum {
    TURBO_TOKEN_CONTROL = 1u, /* decodes to nothing                                     */
    TURBO_TOKEN_SPECIAL = 2u, /* a special token by tokenizer_config.json               */
    TURBO_TOKEN_BYTE = 4u,    /* one raw byte                                           */
    TURBO_TOKEN_UNKNOWN = 8u,
    TURBO_TOKEN_UNUSED = 16u,
};

typedef struct turbo_tokenizer_info {
    uint32_t size;
    int32_t n_vocab;  /* ids are 0..n_vocab-1 */
    int32_t bos;      /* -1: none */
    int32_t eos;      /* -1: none */
    int32_t unk;      /* -1: none */
    int32_t add_bos;  /* 1: a plain prompt starts with bos */
} turbo_tokenizer_info;

typedef struct turbo_tokenizer_vtbl {
    uint32_t size;
    uint32_t reserved;
    const char *id;
    /* Does this folder hold files I read? 0 no; more is surer. Cheap: looks at names. [any] */
    int32_t (*probe)(const turbo_host *h, const char *folder);
    turbo_status (*open)(const turbo_host *h, const char *folder, void **tok, turbo_err *err); /* [main] */
    void (*close)(void *tok);                                                                 /* [main] */
    void (*info)(const void *tok, turbo_tokenizer_info *out);                                 /* [any]  */
    /* Text (valid UTF-8, may hold NUL) to ids; adds no bos. Without TURBO_TOK_TRUSTED no special
     * token can result. ids may be NULL to count. *n is the number of ids; when it exceeds cap the
     * first cap are stored and TURBO_ELIMIT is returned. O(len log len) at most. [any] */
    turbo_status (*encode)(const void *tok, const char *text, uint64_t len, uint32_t flags,
                           int32_t *ids, uint64_t cap, uint64_t *n, turbo_err *err);
    /* The bytes an id stands for, in *bytes (owned by the tokenizer, valid until close). A control
     * token has len 0 here; its name comes from name(). flags: TURBO_TOK_FIRST, _EMPTY. [any] */
    turbo_status (*piece)(const void *tok, int32_t id, uint32_t flags, const char **bytes,
                          uint32_t *len);
    uint32_t (*attr)(const void *tok, int32_t id);                          /* TURBO_TOKEN_* [any] */
    /* The name of a token, "<|im_end|>" or the raw piece, NUL-terminated only when it has no NUL. */
    turbo_status (*name)(const void *tok, int32_t id, const char **name, uint32_t *len);
    /* The id of a token by its name; -1 when there is none. [any] */
    int32_t (*find)(const void *tok, const char *name, uint32_t len);
} turbo_tokenizer_vtbl;

/* ---- samplers --------------------------------------------------------------------------------- */

typedef struct turbo_logit_bias {
    int32_t id;
    float bias; /* -100..100, added to the logit */
} turbo_logit_bias;

/* One step of a sampling program: what a chain or a `logits` hook of a Lua policy compiles to.
 * doc/sampling.md defines each step and names its source. a, b, c, n, m, ids and values mean what
 * the table there says; fields that a step does not use are 0. Ids are in 0..V-1. */
enum {
    TURBO_STEP_PENALIZE = 1, /* a repetition, b presence, c frequency; n last tokens, 0 all */
    TURBO_STEP_TEMPERATURE = 2, /* a; 0 keeps the best token alone */
    TURBO_STEP_TOP_K = 3, /* n */
    TURBO_STEP_TOP_P = 4, /* a */
    TURBO_STEP_MIN_P = 5, /* a */
    TURBO_STEP_TYPICAL = 6, /* a mass */
    TURBO_STEP_TOP_N_SIGMA = 7, /* a standard deviations below the best */
    TURBO_STEP_XTC = 8, /* a threshold, b probability */
    TURBO_STEP_DRY = 9, /* a multiplier, b base, n allowed length, m last tokens; ids break */
    TURBO_STEP_MIROSTAT = 10, /* a tau, b eta (version 2) */
    TURBO_STEP_SCALE = 11, /* logits times a */
    TURBO_STEP_ADD = 12, /* values[i] to the logit of ids[i]; a to each when values is NULL */
    TURBO_STEP_SET = 13, /* the logits of ids become a */
    TURBO_STEP_ALLOW = 14, /* only ids stay */
    TURBO_STEP_BAN = 15, /* ids go */
    TURBO_STEP_FORCE = 16, /* ids[0], whatever was banned before */
    TURBO_STEP_NO_REPEAT_NGRAM = 17, /* n: no run of n tokens a second time */
};

typedef struct turbo_sample_step {
    uint32_t size;
    int32_t kind; /* TURBO_STEP_* */
    float a, b, c;
    int32_t n, m;
    int32_t n_ids;
    const int32_t *ids; /* [n_ids] */
    const float *values; /* [n_ids], or NULL */
} turbo_sample_step;

/* What a caller asks for, already range-checked by the host. Arrays are owned by the host and live
 * as long as the sequence. Neutral values are those of turbo_sample_params_default. */
typedef struct turbo_sample_params {
    uint32_t size;
    float temperature;         /* 0 = greedy */
    float top_p;               /* (0,1], 1 = off */
    float min_p;               /* [0,1], 0 = off */
    int32_t top_k;             /* 0 = off */
    float repetition_penalty;  /* (0,10], 1 = off; over prompt and output (arXiv 1909.05858) */
    float presence_penalty;    /* -2..2, over the output */
    float frequency_penalty;   /* -2..2, over the output */
    int32_t min_tokens;        /* ids in stop_ids are banned before this many output tokens */
    int32_t n_logprobs;        /* -1 off; 0..20 alternatives beside the sampled token */
    int32_t n_bias;
    int32_t n_stop;            /* stop_ids: eos and stop_token_ids, for min_tokens */
    int32_t n_bad;             /* bad_words: sequences of token ids, flattened */
    int32_t n_allowed;         /* 0: all */
    uint64_t seed;
    const turbo_logit_bias *bias;
    const int32_t *stop_ids;
    const int32_t *bad_ids;     /* [sum of bad_len] */
    const int32_t *bad_len;     /* [n_bad] */
    const int32_t *allowed;     /* [n_allowed] ids */
    /* Since 1.1. Steps that run in this order after masks, bias and penalties and before temperature
     * and filters; of those the ones that stand in the program are not run a second time. The pointer
     * and what it points to may change between two calls of sample(). */
    int32_t n_program; /* 0..64 */
    int32_t reserved;
    const turbo_sample_step *program;
} turbo_sample_params;

typedef struct turbo_logprob {
    int32_t id;
    float logprob; /* natural log, of the model's own distribution, before any filter or penalty */
} turbo_logprob;

/* One row to sample. The host fills it, sample() fills token, logprob, top and status. */
typedef struct turbo_sample_row {
    float *logits;                     /* [V] scratch, may be overwritten            */
    void *state;                       /* of this sequence                           */
    const turbo_sample_params *params;
    turbo_logprob *top;                /* [20] room for n_logprobs alternatives      */
    int32_t token;                     /* out: 0..V-1                                */
    float logprob;                     /* out, when n_logprobs >= 0                  */
    int32_t n_top;                     /* out                                        */
    turbo_status status; /* out: TURBO_EDATA when a logit is NaN, or none is finite;
                                          since 1.1 TURBO_EINVAL when the program bans every token */
} turbo_sample_row;

typedef struct turbo_sampler_vtbl {
    uint32_t size;
    uint32_t reserved;
    const char *id;
    turbo_status (*open)(const turbo_host *h, int32_t vocab, void **sampler, turbo_err *err); /* [main] */
    void (*close)(void *sampler);                                                             /* [main] */
    /* Bytes of state a sequence needs, 8-byte aligned memory owned by the core; for max_tokens
     * tokens of prompt and output together. [any] */
    uint64_t (*state_bytes)(const void *sampler, int32_t max_tokens);
    /* Starts a sequence: state is zeroed memory of state_bytes(max_tokens). [any] */
    turbo_status (*begin)(const void *sampler, void *state, int32_t max_tokens,
                          const turbo_sample_params *p, const int32_t *prompt, int32_t n_prompt,
                          turbo_err *err);
    /* Samples n rows. Draws depend on (seed, number of tokens already accepted) only. Allocates
     * nothing. [engine] */
    turbo_status (*sample)(void *sampler, turbo_sample_row *rows, int32_t n, turbo_err *err);
    /* The token became part of the output. [engine] */
    void (*accept)(const void *sampler, void *state, const turbo_sample_params *p, int32_t token);
    /* Since 1.1: 1 when sample() runs params->program. A request with a program is refused by a
     * sampler without. */
    int32_t programs;
    int32_t reserved2;
} turbo_sampler_vtbl;

/* ---- the descriptor ---------------------------------------------------------------------------- */

typedef struct turbo_plugin {
    uint32_t magic; /* TURBO_PLUGIN_MAGIC; the first 16 bytes are frozen for ever */
    uint16_t abi_major;
    uint16_t abi_minor; /* of the header the plugin was built with */
    uint32_t size;      /* sizeof(turbo_plugin) at the plugin's side */
    uint32_t min_minor; /* lowest host minor it can live with */
    uint64_t needs;     /* bits of features it needs; the host of 1.0 knows none */
    const char *id;     /* unique, [a-z0-9-]{1,31} */
    const char *version;
    const char *license; /* SPDX */
    const char *build;   /* free text: compiler, commit */
    const turbo_model_vtbl *const *models;         /* NULL-terminated, or NULL */
    const turbo_tokenizer_vtbl *const *tokenizers; /* NULL-terminated, or NULL */
    const turbo_sampler_vtbl *const *samplers;     /* NULL-terminated, or NULL */
    turbo_status (*init)(const turbo_host *h, turbo_err *err); /* NULL allowed; h lives for ever [main] */
    const void *(*extension)(const char *id);                  /* NULL allowed [any] */
} turbo_plugin;

/* The one exported symbol. host_abi is TURBO_HOST_ABI of the caller. Returns a static descriptor,
 * or NULL to decline. Does nothing else. */
TURBO_EXPORT const turbo_plugin *turbo_plugin_entry(uint32_t host_abi);
typedef const turbo_plugin *(*turbo_plugin_entry_fn)(uint32_t host_abi);

#ifdef __cplusplus
}
#endif
#endif
