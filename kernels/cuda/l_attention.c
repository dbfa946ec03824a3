/* kernels/cuda/l_attention.c: launches of attention, see ops.h. */
#include "cuda/ops.h"

/* Shared memory for a query of attend.cu. The compiler reads it in pieces of 16 bytes, the last one too. */
static size_t query_bytes(int32_t D)
{
    return ((size_t)D + 3) / 4 * 4 * sizeof(float);
}

/* Heads that the tensor-core kernel takes: 16-bit rows that are whole pieces of 16 bytes. */
static bool in_pieces(int32_t act, int32_t D, const void *qkv, const void *out)
{
    return act != TURBO_F32 && D <= 128 && D % 8 == 0 && (uintptr_t)qkv % 16 == 0 &&
           (uintptr_t)out % 4 == 0;
}

void turbok_cu_attention_full(turbok_cu *cu, int32_t act, const void *qkv, int32_t N, int32_t T,
                              int32_t H, int32_t D, float scale, void *out)
{
    struct turbok_cu_attend_full_args a = {
        .qkv = qkv, .out = out, .T = T, .H = H, .D = D, .scale = scale};
    if (in_pieces(act, D, qkv, out)) {
        static const int kernels[2][2] = {{TURBOK_CU_tower64_f16, TURBOK_CU_tower64_bf16},
                                          {TURBOK_CU_tower128_f16, TURBOK_CU_tower128_bf16}};
        enum { ROWS = 16 * TURBOK_CU_TOWER_WARPS, KEYS = 64 };
        size_t padded = D > 64 ? 128 : 64;
        turbok_cu_launch(cu, kernels[D > 64][act == TURBO_BF16],
                         TURBOK_CU_DIM((unsigned)((T + ROWS - 1) / ROWS), (unsigned)H, (unsigned)N),
                         TURBOK_CU_DIM(32 * TURBOK_CU_TOWER_WARPS), 4 * KEYS * padded * 2,
                         TURBOK_CU_PDL, &a);
        return;
    }
    turbok_cu_launch(cu, TURBOK_CU_attend_full_f32 + act,
                     TURBOK_CU_DIM((unsigned)T, (unsigned)H, (unsigned)N), TURBOK_CU_DIM(128),
                     query_bytes(D), TURBOK_CU_PDL, &a);
}

enum {
    HEADS = 8, /* of an item of decode.cuh */
    BLOCKS = 512, /* at most */
    UNIT = 64, /* keys of the smallest piece */
    /* Bytes of shared memory with which no block of a product (gemv.cu) is beside one of attention. */
    ALONE = 60 << 10,
};

static uint64_t slot_bytes(int32_t head_dim)
{
    return HEADS * ((uint64_t)head_dim + TURBOK_CU_PARTIAL_TAIL) * sizeof(float);
}

static uint64_t counter_bytes(uint64_t S, uint64_t per_sequence)
{
    return (S * per_sequence * sizeof(uint32_t) + 255) / 256 * 256;
}

/* Slots that a launch can need: a block works on a piece of a sequence that began before it and on one
 * that goes on after it. */
static uint64_t slots_of(uint64_t S, uint64_t per_sequence, int32_t max_kv)
{
    uint64_t units = S * per_sequence * (((uint64_t)max_kv + UNIT - 1) / UNIT);
    return 2 * (units < BLOCKS ? units : BLOCKS);
}

uint64_t turbok_cu_attention_bytes(int32_t max_T, int32_t max_B, int32_t n_heads, int32_t head_dim,
                                   int32_t max_kv)
{
    uint64_t B = (uint64_t)(max_T < max_B ? max_T : max_B), H = (uint64_t)n_heads;
    return counter_bytes(B, H) + slots_of(B, H, max_kv) * slot_bytes(head_dim);
}

/* Which tensor-core kernel takes these types and sizes: type of the cache * 2 + (head beyond 64), -1: none. */
static int tensor_kind(int32_t act, const turbok_cu_attn *at)
{
    int32_t D = at->kv.head_dim, kind = at->kv.dtype == 0x108 ? 1 : at->kv.dtype == 0x104 ? 2 : 0;
    if (act == TURBO_F32 || D > 128 || D % (kind ? 16 : 8) || (!kind && at->kv.dtype != act))
        return -1;
    return kind * 2 + (D > 64);
}

static int32_t shift_of(int32_t block_tokens)
{
    for (int32_t i = 0; i < 16; i++)
        if (block_tokens == 1 << i)
            return i;
    return -1;
}

#define KINDS(name)                                                                                \
    {                                                                                              \
        {TURBOK_CU_##name##64_f16, TURBOK_CU_##name##64_bf16},                                     \
            {TURBOK_CU_##name##128_f16, TURBOK_CU_##name##128_bf16},                               \
            {TURBOK_CU_##name##64q8_f16, TURBOK_CU_##name##64q8_bf16},                             \
            {TURBOK_CU_##name##128q8_f16, TURBOK_CU_##name##128q8_bf16},                           \
            {TURBOK_CU_##name##64q4_f16, TURBOK_CU_##name##64q4_bf16},                             \
            {TURBOK_CU_##name##128q4_f16, TURBOK_CU_##name##128q4_bf16},                           \
    }
static const int decode_kernels[6][2] = KINDS(decode), brief_kernels[6][2] = KINDS(brief),
                 prefill_kernels[6][2] = KINDS(prefill);
#define KINDS16(name)                                                                              \
    {                                                                                              \
        {TURBOK_CU_##name##64_f16, TURBOK_CU_##name##64_bf16},                                     \
            {TURBOK_CU_##name##128_f16, TURBOK_CU_##name##128_bf16},                               \
    }
static const int wide_kernels[2][2][2] = {KINDS16(prefill_wide), KINDS16(prefill_brief)};
static const int long_kernels[2] = {TURBOK_CU_prefill_long128_f16, TURBOK_CU_prefill_long128_bf16};

/* The map of all blocks for prefill_wide; rows of 128 bytes and more are fewer than 2^31 on any card. */
static void map_blocks(turbok_cu *cu, struct turbok_cu_prefill_args *a)
{
    enum { KEYS = TURBOK_CU_WIDE_KEYS };
    const turbok_cu_kv *kv = &a->at.kv;
    const uint64_t row = (uint64_t)kv->head_dim * 2;
    if (!cu->drv.tensor_map || a->block_shift < 3 || row < 128 || kv->plane_bytes % row ||
        kv->block_bytes % row || (uintptr_t)kv->base % 16)
        return;
    a->map_rows = kv->block_tokens < KEYS ? kv->block_tokens : KEYS;
    a->map_block = (int32_t)(kv->block_bytes / row);
    a->map_plane = (int32_t)(kv->plane_bytes / row);
    turbok_cu_map_rows(cu, &a->map, kv->base, INT32_MAX, kv->head_dim, a->map_rows);
}

/* Do two groups of a block share the keys of 64 rows? Where blocks of 128 rows leave half of the card without work; more
 * blocks would wait for each other. A row's bits then hang on how much is computed beside it. */
static bool shares_keys(const turbok_cu *cu, const turbok_cu_attn *at, const turbok_cu_batch *b)
{
    enum { ROWS = 128 };
    const int32_t G = at->n_heads / at->kv.n_kv, tokens = ROWS / (G < ROWS ? G : ROWS);
    const int64_t blocks =
        (b->T + (int64_t)tokens - 1) / tokens * at->kv.n_kv * ((G + ROWS - 1) / ROWS);
    return !cu->deterministic && blocks <= cu->shared_keys;
}

/* Sequences with more than `shortest` new tokens. With `deterministic` the kernel hangs on the card and on the layer alone, so that a
 * token's bits do not change with its batch. */
static void prefill(turbok_cu *cu, int kind, bool bf16, const turbok_cu_attn *at,
                    const turbok_cu_batch *b, const void *q, void *out, int32_t shortest)
{
    enum { ROWS = 128, KEYS = 64 };
    const int32_t G = at->n_heads / at->kv.n_kv, D = at->kv.head_dim > 64 ? 128 : 64;
    /* It looks for the largest score before it is scaled, and moves 16 bytes at a time. */
    const bool groups = kind < 2 && cu->warp_groups && at->scale > 0 && (uintptr_t)q % 16 == 0 &&
                        (uintptr_t)out % 16 == 0;
    const int32_t shares = groups && shares_keys(cu, at, b) ? 2 : 1;
    const int32_t rows = ROWS / shares, tokens = rows / (G < rows ? G : rows);
    struct turbok_cu_prefill_args a = {
        .at = *at, .b = *b, .q = q, .out = out, .shortest = shortest};
    a.block_shift = shift_of(at->kv.block_tokens);
    /* no more tiles than this, whatever the lengths */
    unsigned tiles = (unsigned)((b->T + tokens - 1) / tokens + b->S);
    unsigned heads = (unsigned)(at->kv.n_kv * ((G + rows - 1) / rows));
    if (groups) {
        /* Tiles of twice as many keys; a row's bits then hang on the sequences beside it. */
        const bool many =
            !cu->deterministic && shares == 1 && D == 128 && b->max_kv >= cu->long_keys;
        const size_t keys = many ? TURBOK_CU_LONG_STAGES * TURBOK_CU_LONG_KEYS
                                 : TURBOK_CU_WIDE_STAGES * TURBOK_CU_WIDE_KEYS,
                     ring = 2 * keys * (size_t)D * 2,
                     sums = shares > 1 ? 2 * ((size_t)D / 4 + 4) * 128 * sizeof(float) : 0;
        map_blocks(cu, &a);
        turbok_cu_launch(cu, many ? long_kernels[bf16] : wide_kernels[shares > 1][kind][bf16],
                         TURBOK_CU_DIM(tiles * heads), TURBOK_CU_DIM(TURBOK_CU_WIDE_THREADS),
                         ring + sums, TURBOK_CU_PDL, &a);
    } else {
        turbok_cu_launch(cu, prefill_kernels[kind][bf16], TURBOK_CU_DIM(tiles, heads),
                         TURBOK_CU_DIM(256), 4 * KEYS * (size_t)D * 2, TURBOK_CU_PDL, &a);
    }
}

int32_t turbok_cu_attention_brief(const turbok_cu *cu)
{
    const bool clusters = cu->code_90 && cu->drv.launch_ex;
    return clusters ? cu->together * UNIT * TURBOK_CU_DECODE_CREW : 0;
}

static void decode(turbok_cu *cu, int kind, bool bf16, const turbok_cu_attn *at,
                   const turbok_cu_batch *b, const void *q, void *out, void *scratch,
                   uint64_t scratch_bytes)
{
    int32_t D = at->kv.head_dim, G = at->n_heads / at->kv.n_kv, padded = D > 64 ? 128 : 64;
    uint64_t per = (uint64_t)at->kv.n_kv * (uint64_t)((G + HEADS - 1) / HEADS);
    struct turbok_cu_decode_args a = {.at = *at, .b = *b, .q = q, .out = out};
    unsigned blocks = (unsigned)(cu->sm_count * TURBOK_CU_DECODE_BLOCKS);
    blocks = blocks < BLOCKS ? blocks : BLOCKS;
    a.block_shift = shift_of(at->kv.block_tokens);
    const size_t sums = sizeof(float) * 4 * HEADS * (size_t)padded;
    const uint64_t crews = (uint64_t)b->S * per * TURBOK_CU_DECODE_CREW;
    /* More clusters do not all find their places at once. */
    if (2 * crews <= blocks && b->max_kv <= turbok_cu_attention_brief(cu)) {
        turbok_cu_launch(cu, brief_kernels[kind][bf16], TURBOK_CU_DIM((unsigned)crews),
                         TURBOK_CU_DIM(128), sums + ALONE,
                         TURBOK_CU_PDL | TURBOK_CU_CLUSTER(TURBOK_CU_DECODE_CREW), &a);
        return;
    }
    uint64_t counters = counter_bytes((uint64_t)b->S, per);
    uint64_t slots = slots_of((uint64_t)b->S, per, b->max_kv);
    a.arrived = scratch;
    a.partial = (float *)((char *)scratch + counters);
    if (scratch_bytes >= counters + slots * slot_bytes(D))
        a.slots = (int32_t)slots;
    turbok_cu_launch(cu, decode_kernels[kind][bf16], TURBOK_CU_DIM(blocks), TURBOK_CU_DIM(128),
                     sums + ((size_t)b->S + 4) / 4 * 4 * sizeof(int), TURBOK_CU_PDL, &a);
}

bool turbok_cu_attention_turned(turbok_cu *cu, int32_t act, const turbok_cu_attn *at,
                                const turbok_cu_batch *b, const void *qkv, void *q, void *out)
{
    enum { WARPS = TURBOK_CU_TURNED_WARPS, KEYS = TURBOK_CU_TURNED_KEYS };
    static const int kernels[2][2] = {{TURBOK_CU_turned64_f16, TURBOK_CU_turned64_bf16},
                                      {TURBOK_CU_turned128_f16, TURBOK_CU_turned128_bf16}};
    const turbok_cu_kv *kv = &at->kv;
    const int32_t D = kv->head_dim, G = at->n_heads / kv->n_kv;
    const int32_t tiles = (G + TURBOK_CU_TURNED_HEADS - 1) / TURBOK_CU_TURNED_HEADS;
    const int64_t blocks = (int64_t)b->S * kv->n_kv * tiles * TURBOK_CU_DECODE_CREW;
    if (act == TURBO_F32 || kv->dtype != act || (D != 64 && D != 128) || at->rope_dim != D ||
        at->rope_style != TURBO_ROPE_HALF || at->rope_factor > 0 || cu->deterministic ||
        b->max_new != 1 || b->max_kv > at->rope_table || b->max_kv > TURBOK_CU_TURNED_MOST ||
        b->max_kv > turbok_cu_attention_brief(cu) || blocks > cu->sm_count || (uintptr_t)qkv % 16 ||
        (uintptr_t)q % 16 || (uintptr_t)kv->base % 16 || kv->block_bytes % 16 ||
        kv->plane_bytes % 16 || (uintptr_t)at->cosine % 16 || (uintptr_t)at->sine % 16)
        return false;
    struct turbok_cu_turned_args a = {.at = *at, .b = *b, .qkv = qkv, .q = q, .out = out};
    const size_t row = TURBOK_CU_TURNED_KEY_ROW((size_t)D) + TURBOK_CU_TURNED_VALUE_ROW((size_t)D);
    turbok_cu_launch(cu, kernels[D > 64][act == TURBO_BF16], TURBOK_CU_DIM((unsigned)blocks),
                     TURBOK_CU_DIM(32 * WARPS), WARPS * KEYS * row,
                     TURBOK_CU_PDL | TURBOK_CU_CLUSTER(TURBOK_CU_DECODE_CREW), &a);
    return true;
}

void turbok_cu_attention(turbok_cu *cu, int32_t act, const turbok_cu_attn *at,
                         const turbok_cu_batch *b, const void *q, void *out, void *scratch,
                         uint64_t scratch_bytes)
{
    int kind = tensor_kind(act, at);
    bool bf16 = act == TURBO_BF16;
    if (kind >= 0 && cu->deterministic) {
        /* one way for every token, whether it came alone or in a prompt */
        prefill(cu, kind, bf16, at, b, q, out, 0);
    } else if (kind >= 0 && b->S <= 1024) {
        if (b->max_new == 1 || b->max_new < b->T) /* else all tokens are one prompt's */
            decode(cu, kind, bf16, at, b, q, out, scratch, scratch_bytes);
        if (b->max_new > 1)
            prefill(cu, kind, bf16, at, b, q, out, 1);
    } else if (kind >= 0) {
        prefill(cu, kind, bf16, at, b, q, out, 0);
    } else {
        struct turbok_cu_attend_args a = {.at = *at, .b = *b, .q = q, .out = out};
        turbok_cu_launch(cu, TURBOK_CU_attend_f32 + act,
                         TURBOK_CU_DIM((unsigned)b->T, (unsigned)at->n_heads), TURBOK_CU_DIM(128),
                         query_bytes(at->kv.head_dim), TURBOK_CU_PDL, &a);
    }
}
