/* tests/kern/test_image.c: matrices as bytes and back: every kind of handle gives the same products from its
 * image, damaged heads are refused, and the layout is the one that TURBOK_LAYOUT names. */
#include "kit.h"

#define IN 96
#define OUT 75 /* no whole tile, no whole stripe */

static kit_devices devices;

typedef struct bytes {
    uint8_t *p; /* on 64 bytes */
    uint64_t n, cap;
} bytes;

static bool take(void *ctx, const void *p, uint64_t n)
{
    bytes *b = ctx;
    if (b->n + n > b->cap)
        return false;
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return true;
}

typedef struct source {
    float wide[OUT * IN], bias[OUT], scale[OUT * IN / 32], min[OUT * IN / 32];
    uint16_t half[OUT * IN];
    uint8_t codes[OUT * IN], zero[OUT * IN / 32];
    int32_t perm[IN];
} source;

static source *source_new(void)
{
    kit_rng r = {5};
    source *s = calloc(1, sizeof *s);
    assert_non_null(s);
    kit_floats(&r, s->wide, OUT * IN);
    kit_floats(&r, s->bias, OUT);
    for (int i = 0; i < OUT * IN; i++) {
        uint32_t u;
        memcpy(&u, &s->wide[i], 4);
        s->half[i] = (uint16_t)(u >> 16);
        s->codes[i] = (uint8_t)kit_range(&r, 0, 255);
    }
    for (int i = 0; i < OUT * IN / 32; i++) {
        s->scale[i] = (float)kit_range(&r, 1, 100) * 0x1p-10f;
        s->min[i] = (float)kit_range(&r, -50, 50) * 0x1p-10f;
        s->zero[i] = (uint8_t)kit_range(&r, 0, 15);
    }
    for (int i = 0; i < IN; i++)
        s->perm[i] = (i * 5 + 1) % IN;
    return s;
}

/* How many handles make() knows, and which data of theirs layout_of() looks at. */
#define KINDS 6

static turbo_linear *make(turbok_device *d, const source *s, int kind)
{
    turbok_grid g = {.group = 32, .scale_dtype = TURBO_F32, .codes = s->codes, .scale = s->scale};
    g.bits = kind == 2 ? 8 : 4;
    g.offset = kind == 2 ? 128 : 8;
    g.zero = kind == 3 ? s->zero : NULL;
    g.perm = kind == 3 ? s->perm : NULL;
    g.min = kind == 4 ? s->min : NULL;
    turbok_part parts[2] = {{.rows = OUT, .bias = s->bias, .bias_dtype = TURBO_F32}};
    int32_t n = 1, dtype = kind == 0 ? TURBO_F32 : TURBO_BF16;
    parts[0].data = kind == 0 ? (const void *)s->wide : s->half;
    if (kind >= 2)
        parts[0] = (turbok_part){.rows = OUT, .grid = &g, .bias = parts[0].bias};
    if (kind == 5) { /* one handle of two kinds */
        n = 2;
        parts[1] = (turbok_part){.rows = 40, .data = s->half};
    }
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    if (turbok_linear_rows_new(d, dtype, parts, n, IN, 0, &w, &err))
        fail_msg("kind %d: %s", kind, err.text);
    return w;
}

static bytes image_of(const turbo_linear *w)
{
    bytes b = {.cap = turbok_image_bytes(w)};
    assert_int_equal(b.cap % 64, 0);
    b.p = aligned_alloc(64, b.cap);
    assert_non_null(b.p);
    assert_true(turbok_image_write(w, take, &b));
    assert_int_equal(b.n, b.cap);
    return b;
}

static void product(turbok_device *d, const turbo_linear *w, float *out)
{
    float in[3 * IN];
    kit_rng r = {9};
    kit_floats(&r, in, 3 * IN);
    turbok_device_ops(d)->linear(turbok_device_exec(d), w, in, 3, out);
}

static void test_round(void **state)
{
    source *s = source_new();
    (void)state;
    for (int k = 0; k < devices.n; k++)
        for (int kind = 0; kind < KINDS; kind++) {
            turbok_device *d = devices.d[k];
            float want[3 * (OUT + 40)] = {0}, got[3 * (OUT + 40)] = {0};
            turbo_linear *w = make(d, s, kind), *again = NULL;
            uint64_t taken = turbok_device_mem(d, TURBOK_MEM_LINEAR), used = 0;
            turbo_err err = {{0}};
            product(d, w, want);
            bytes b = image_of(w);
            turbok_linear_free(d, w);
            assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), 0);
            uint8_t *copy = malloc(b.n);
            assert_non_null(copy);
            memcpy(copy, b.p, b.n);
            if (turbok_image_open(d, b.p, b.n, &used, &again, &err))
                fail_msg("kind %d: %s", kind, err.text);
            assert_int_equal(used, b.n);
            assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), taken);
            product(d, again, got);
            kit_equal("product", got, want, sizeof want);
            turbok_linear_free(d, again);
            assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), 0);
            assert_memory_equal(copy, b.p, b.n); /* only read */
            free(copy);
            free(b.p);
        }
    free(s);
}

/* A cut image, and every byte of the numbers at its beginning turned round: refused, or opened without a look
 * beyond its end (which sanitizers see), and nothing stays counted. */
static void test_damage(void **state)
{
    source *s = source_new();
    turbok_device *d = devices.d[0];
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        turbo_linear *w = make(d, s, kind), *again;
        bytes b = image_of(w);
        turbo_err err = {{0}};
        uint64_t used;
        turbok_linear_free(d, w);
        for (uint64_t n = 0; n < b.n; n += n < 2048 ? 1 : 997)
            assert_int_equal(turbok_image_open(d, b.p, n, &used, &again, &err), TURBO_EDATA);
        for (int at = 0; at < 80; at++) {
            b.p[at] ^= 0x41;
            if (!turbok_image_open(d, b.p, b.n, &used, &again, &err))
                turbok_linear_free(d, again);
            else
                assert_non_null(strstr(err.text, "image of a matrix"));
            assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), 0);
            b.p[at] ^= 0x41;
        }
        free(b.p);
    }
    free(s);
}

/* Files of repacked weights outlive a build. When this fails, the layout of matrices has changed: raise TURBOK_LAYOUT
 * and put here what is printed. */
static void test_layout(void **state)
{
    static const uint64_t known[5] = {0xe8c5abeec840835c, 0x733b010163ceedff, 0xc01af86f165fc102,
                                      0x48b22fe88e5850f2, 0x8ec8573deeb099b5};
    source *s = source_new();
    int wrong = 0;
    (void)state;
    assert_int_equal(TURBOK_LAYOUT, 1);
    for (int k = 0; k < devices.n; k++)
        for (int kind = 0; kind < 5; kind++) {
            turbo_linear *w = make(devices.d[k], s, kind);
            turbok_hash h;
            turbok_hash_init(&h, (turbok_kv_key){1, 2});
            turbok_hash_add(&h, w->data, w->data_bytes);
            turbok_hash_add(&h, w->bias, (size_t)w->tiles * TURBOK_TILE * sizeof(float));
            uint64_t digest = turbok_hash_end(&h).lo;
            turbok_linear_free(devices.d[k], w);
            if (digest != known[kind]) {
                print_message("%s, kind %d: 0x%016llx\n", turbok_device_name(devices.d[k]), kind,
                              (unsigned long long)digest);
                wrong++;
            }
        }
    free(s);
    assert_int_equal(wrong, 0);
}

static void test_kind(void **state)
{
    char a[256], b[256], small[4];
    (void)state;
    assert_false(turbok_image_kind(devices.d[0], small, sizeof small));
    for (int k = 0; k < devices.n; k++)
        for (int i = 0; i < k; i++) {
            assert_true(turbok_image_kind(devices.d[k], a, sizeof a));
            assert_true(turbok_image_kind(devices.d[i], b, sizeof b));
            bool same = turbok_device_isa(devices.d[k]) == turbok_device_isa(devices.d[i]);
            assert_int_equal(!strcmp(a, b), same);
        }
}

static int open_all(void **state)
{
    static const int threads[] = {1, 3};
    (void)state;
    kit_open(&devices, threads, 2);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    kit_close(&devices);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_kind),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
