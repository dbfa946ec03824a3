/* Model folders between the file and the model: data of all kinds, shards, links, tensors that do
 * not fit the configuration, files that change while they are read. Damage to the header of a file
 * itself is the matter of test_weights.c. */
#include <linux/magic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/runner.h"
#include "plugin/host.h"
#include "util/file.h"
#include "util/log.h"
#include "weights/index.h"

static const turbo_model_vtbl *vtbl;
static turbok_device *device;
static char folder[64];

static void put(const char *name, const void *data, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    if (!data)
        return;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static uint8_t *get(const char *name, uint64_t *n)
{
    uint8_t *p = NULL;
    turbo_err err;
    if (turbod_file_read(folder, name, 1 << 24, &p, n, &err))
        fail_msg("%s", err.text);
    return p;
}

/* A file with one tensor "t.weight" (and, for dims of two, "t.bias" is absent). */
static void put_tensor(const char *dtype, const char *shape, const void *data, size_t n)
{
    char header[256];
    uint8_t file[4096];
    int k = snprintf(header, sizeof header,
                     "{\"t.weight\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[0,%zu]}}",
                     dtype, shape, n);
    uint64_t len = (uint64_t)k;
    assert_true(8 + len + n <= sizeof file);
    memcpy(file, &len, 8);
    memcpy(file + 8, header, len);
    memcpy(file + 8 + len, data, n);
    put("model.safetensors", file, 8 + len + n);
}

static turbo_status take(const turbod_weights_opts *o, int64_t n, turbo_err *err)
{
    turbo_weights *w = NULL;
    const turbo_vector *v = NULL;
    turbo_status st = turbod_weights_open(folder, o, &w, err);
    if (!st)
        st = turbod_host_vector(w, "t", n, &v, err);
    turbod_weights_close(w);
    return st;
}

/* NaN and both infinities at every place of short and long tensors; the largest numbers pass. */
static void test_finite(void **state)
{
    (void)state;
    static const struct {
        const char *dtype;
        size_t size;
        uint32_t max, bad[4];
    } rows[] = {
        {"F32", 4, 0xff7fffff, {0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff}},
        {"F16", 2, 0xfbff, {0x7c00, 0xfc00, 0x7e00, 0x7c01}},
        {"BF16", 2, 0xff7f, {0x7f80, 0xff80, 0x7fc0, 0xffff}},
    };
    static const int64_t counts[] = {1, 2, 3, 5, 8, 33};
    turbo_err err = {{0}};
    turbod_weights_opts strict = {.device = device},
                        lax = {.device = device, .allow_nonfinite = true};
    for (size_t t = 0; t < 3; t++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            uint8_t data[33 * 4];
            char shape[8];
            int64_t n = counts[c];
            size_t size = rows[t].size;
            snprintf(shape, sizeof shape, "%d", (int)n);
            for (int64_t i = 0; i < n; i++)
                memcpy(data + (size_t)i * size, &rows[t].max, size);
            put_tensor(rows[t].dtype, shape, data, (size_t)n * size);
            assert_int_equal(take(&strict, n, &err), TURBO_OK);
            for (int64_t i = 0; i < n; i++) {
                uint32_t bad = rows[t].bad[(i + n) % 4];
                memcpy(data + (size_t)i * size, &bad, size);
                put_tensor(rows[t].dtype, shape, data, (size_t)n * size);
                assert_int_equal(take(&strict, n, &err), TURBO_EDATA);
                assert_non_null(strstr(err.text, "t.weight"));
                assert_non_null(strstr(err.text, "NaN"));
                assert_int_equal(take(&lax, n, &err), TURBO_OK);
                memcpy(data + (size_t)i * size, &rows[t].max, size);
            }
        }
}

/* Types that are stored but not computed, and shapes that differ, name the tensor. */
static void test_types(void **state)
{
    (void)state;
    static const char *const types[] = {"I32", "U32", "F8_E4M3", "BOOL", "F64"};
    static const size_t sizes[] = {4, 4, 1, 1, 8};
    static const uint8_t zeros[64];
    turbo_err err = {{0}};
    turbod_weights_opts o = {.device = device};
    for (size_t i = 0; i < 5; i++) {
        put_tensor(types[i], "4", zeros, 4 * sizes[i]);
        assert_int_equal(take(&o, 4, &err), TURBO_EUNSUPPORTED);
        assert_non_null(strstr(err.text, types[i]));
        assert_non_null(strstr(err.text, "t.weight"));
    }
    put_tensor("F32", "4", zeros, 16);
    assert_int_equal(take(&o, 5, &err), TURBO_EDATA);
    put_tensor("F32", "2,2", zeros, 16);
    assert_int_equal(take(&o, 4, &err), TURBO_EDATA);
    put_tensor("F32", "", zeros, 4);
    assert_int_equal(take(&o, 1, &err), TURBO_EDATA);
    put_tensor("F32", "0", zeros, 0);
    assert_int_equal(take(&o, 1, &err), TURBO_EDATA);
    turbod_weights_opts none = {0};
    put_tensor("F32", "4", zeros, 16);
    assert_int_equal(take(&none, 4, &err), TURBO_EINTERNAL);
}

/* ---- a whole model ------------------------------------------------------------------------------
 */

static void config(const char *more)
{
    char text[1024];
    int n = snprintf(
        text, sizeof text,
        "{\"architectures\":[\"InternLM2ForCausalLM\"],\"vocab_size\":40,\"bias\":false,"
        "\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"torch_dtype\":\"float32\"%s}",
        more);
    put("config.json", text, (size_t)n);
}

static void model(const char *more)
{
    turbo_err err = {{0}};
    put("model.safetensors.index.json", NULL, 0);
    config(more);
    if (!checkpoint_write(vtbl, folder, NULL, &err))
        fail_msg("cannot write: %s", err.text);
}

static turbo_status run(float *logits, turbo_err *err)
{
    static const int32_t ids[] = {3, 1, 4, 1, 5};
    runner r;
    runner_opts o = {.threads = 1, .kv_dtype = TURBO_F32, .max_tokens = 16};
    *err = (turbo_err){{0}};
    turbo_status st = runner_open(&r, vtbl, folder, &o, err);
    if (!st)
        st = runner_step(&r, ids, 5, 5, 1, logits, err);
    runner_close(&r);
    return st;
}

/* Replaces the first `from` in the header by `to` of the same length. */
static void patch(const char *from, const char *to)
{
    uint64_t n, header;
    uint8_t *file = get("model.safetensors", &n);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(&header, file, 8);
    uint8_t *at = memmem(file + 8, header, from, strlen(from));
    assert_non_null(at);
    memcpy(at, to, strlen(to));
    put("model.safetensors", file, n);
    free(file);
}

static void test_mismatches(void **state)
{
    (void)state;
    float logits[40];
    turbo_err err;
    static const struct {
        const char *from, *to, *says;
    } rows[] = {
        {"\"model.norm.weight\"", "\"model.nurm.weight\"", "model.norm.weight is missing"},
        {"[16,24]", "[24,16]", "[24,16], config.json says [16,24]"},
        {"\"shape\":[32,16]", "\"shape\":[16,32]", "wqkv.weight has the shape [16,32]"},
        {"\"shape\":[16]", "\"shape\":[ 8]", "model.safetensors"}, /* its data would be too long */
        {"\"F32\"", "\"I32\"", "is I32"},
        {"\"F32\"", "\"F99\"", "unknown dtype"},
        {"feed_forward.w1", "feed_forward.w9", "feed_forward.w1.weight is missing"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        model("");
        assert_int_equal(run(logits, &err), TURBO_OK);
        patch(rows[i].from, rows[i].to);
        assert_int_equal(run(logits, &err), TURBO_EDATA);
        if (!strstr(err.text, rows[i].says))
            fail_msg("%s -> %s: %s", rows[i].from, rows[i].to, err.text);
    }
    model("");
    config(",\"intermediate_size\":25"); /* named twice: not taken as the last or the first */
    assert_int_equal(run(logits, &err), TURBO_EDATA);
    assert_non_null(strstr(err.text, "twice"));
}

/* Offsets off by one, at every tensor: refused, whatever direction. */
static void test_offsets(void **state)
{
    (void)state;
    model("");
    uint64_t n, header;
    uint8_t *good = get("model.safetensors", &n);
    memcpy(&header, good, 8);
    uint8_t *file = malloc(n);
    int tried = 0;
    static const char key[] = "\"data_offsets\":[";
    for (uint8_t *at = good + 8; (at = memmem(at, header - (size_t)(at - good - 8), key, 16));
         at++) {
        char *from = (char *)at + 16, *to = strchr(from, ',') + 1;
        for (int k = 0; k < 4; k++) {
            memcpy(file, good, n);
            char *digit =
                (char *)file + ((k < 2 ? to : strchr(to, ']')) - 2 - (char *)good) + (k >= 2);
            *digit = (char)(*digit + (k % 2 ? -1 : 1));
            turbod_st *st = NULL;
            turbo_err err;
            put("model.safetensors", file, n);
            assert_int_equal(turbod_st_open(folder, "model.safetensors", &st, &err), TURBO_EDATA);
            tried++;
        }
    }
    assert_int_equal(tried, 17 * 4);
    free(good);
    free(file);
}

/* A tied model needs no head; one that is stored all the same is left alone. */
static void test_tied(void **state)
{
    (void)state;
    float plain[40], with_head[40];
    turbo_err err;
    model(",\"tie_word_embeddings\":true");
    assert_int_equal(run(plain, &err), TURBO_OK);
    model("");
    assert_int_equal(run(with_head, &err), TURBO_OK);
    assert_memory_not_equal(plain, with_head, sizeof plain);
    config(",\"tie_word_embeddings\":true");
    assert_int_equal(run(with_head, &err), TURBO_OK);
    assert_memory_equal(plain, with_head, sizeof plain);
}

/* The same tensors in two files, found through the index or refused. */
static void test_shards(void **state)
{
    (void)state;
    float whole[40], sharded[40];
    turbo_err err;
    model("");
    assert_int_equal(run(whole, &err), TURBO_OK);
    turbod_index *ix = NULL;
    assert_int_equal(turbod_index_open(folder, &ix, &err), TURBO_OK);
    size_t count = turbod_index_count(ix);
    char *index = malloc(65536);
    size_t at =
        (size_t)snprintf(index, 65536, "{\"metadata\":{\"total_size\":%llu},\"weight_map\":{",
                         (unsigned long long)turbod_index_bytes(ix));
    for (int shard = 0; shard < 2; shard++) {
        char header[8192] = "{", path[128];
        size_t len = 1;
        uint64_t off = 0;
        for (size_t i = (size_t)shard; i < count; i += 2) {
            const turbod_st_tensor *t = turbod_index_at(ix, i);
            char dims[32];
            snprintf(dims, sizeof dims, t->ndim > 1 ? "%llu,%llu" : "%llu",
                     (unsigned long long)t->dims[0], (unsigned long long)t->dims[1]);
            len += (size_t)snprintf(header + len, sizeof header - len,
                                    "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":"
                                    "[%llu,%llu]}",
                                    off ? "," : "", t->name, dims, (unsigned long long)off,
                                    (unsigned long long)(off + t->bytes));
            at += (size_t)snprintf(index + at, 65536 - at, "%s\"%s\":\"part-%d.safetensors\"",
                                   i || shard ? "," : "", t->name, shard);
            off += t->bytes;
        }
        header[len++] = '}';
        snprintf(path, sizeof path, "%s/part-%d.safetensors", folder, shard);
        FILE *f = fopen(path, "wb");
        uint64_t n = len;
        fwrite(&n, 8, 1, f);
        fwrite(header, 1, len, f);
        for (size_t i = (size_t)shard; i < count; i += 2)
            fwrite(turbod_index_at(ix, i)->data, 1, turbod_index_at(ix, i)->bytes, f);
        fclose(f);
    }
    at += (size_t)snprintf(index + at, 65536 - at, "}}");
    turbod_index_close(ix);
    put("model.safetensors", NULL, 0);
    put("model.safetensors.index.json", index, at);
    assert_int_equal(run(sharded, &err), TURBO_OK);
    assert_memory_equal(whole, sharded, sizeof whole);
    char *where = strstr(index, "part-1");
    where[5] = '0'; /* one tensor is not where the index says */
    put("model.safetensors.index.json", index, at);
    assert_int_equal(run(sharded, &err), TURBO_EDATA);
    where[5] = '2'; /* a file that does not exist */
    put("model.safetensors.index.json", index, at);
    assert_int_equal(run(sharded, &err), TURBO_ENOENT);
    assert_non_null(strstr(err.text, "part-2.safetensors"));
    put("part-0.safetensors", NULL, 0);
    put("part-1.safetensors", NULL, 0);
    put("model.safetensors.index.json", NULL, 0);
    free(index);
}

/* A file that is written to, cut or replaced between open and unmap is noticed. */
static void test_changed(void **state)
{
    (void)state;
    char path[128];
    turbo_err err;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    for (int how = 0; how < 3; how++) {
        turbo_weights *w = NULL;
        turbod_weights_opts o = {.device = device};
        model("");
        assert_int_equal(turbod_weights_open(folder, &o, &w, &err), TURBO_OK);
        if (how == 0) {
            assert_int_equal(truncate(path, 100), 0);
        } else {
            FILE *f = fopen(path, "r+b");
            fseek(f, how == 1 ? -4 : 0, SEEK_END);
            fputc(1, f);
            fclose(f);
        }
        assert_int_equal(turbod_weights_unmap(w, &err), TURBO_EDATA);
        assert_non_null(strstr(err.text, "changed"));
        turbod_weights_close(w);
    }
}

static uint64_t seen;

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    assert_true(done >= seen && done <= total);
    seen = done;
}

/* Links as model caches make them are followed; progress ends at the whole. */
static void test_links(void **state)
{
    (void)state;
    char path[128], target[128];
    float a[40], b[40];
    turbo_err err;
    model("");
    assert_int_equal(run(a, &err), TURBO_OK);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    snprintf(target, sizeof target, "%s/blob", folder);
    assert_int_equal(rename(path, target), 0);
    assert_int_equal(symlink("blob", path), 0);
    assert_int_equal(run(b, &err), TURBO_OK);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(chmod(target, 0666), 0);
    assert_int_equal(run(b, &err), TURBO_EDATA); /* anyone could swap the weights */
    unlink(path);
    assert_int_equal(symlink("/dev/zero", path), 0);
    assert_int_equal(run(b, &err), TURBO_EDATA);
    unlink(path);
    assert_int_equal(symlink("nowhere", path), 0);
    assert_int_equal(run(b, &err), TURBO_ENOENT);
    unlink(path);
    unlink(target);
    turbo_weights *w = NULL;
    turbod_weights_opts o = {.device = device, .progress = on_progress};
    turbo_config *c = NULL;
    void *m = NULL;
    model("");
    seen = 0;
    assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_OK);
    assert_int_equal(turbod_weights_open(folder, &o, &w, &err), TURBO_OK);
    assert_int_equal(vtbl->open(turbod_host_table(), c, w, turbok_device_ops(device), &m, &err),
                     TURBO_OK);
    assert_true(seen > 0);
    assert_true(turbok_device_alloc_bytes(device) > 0);
    assert_int_equal(turbod_weights_unmap(w, &err), TURBO_OK);
    const turbo_vector *v = NULL;
    assert_int_equal(turbod_host_vector(w, "model.norm", 16, &v, &err), TURBO_EINTERNAL);
    assert_int_equal(turbod_host_has_tensor(w, "model.norm.weight"), 0);
    vtbl->close(m);
    turbod_weights_close(w);
    turbod_config_close(c);
}

/* Files in tmpfs are told from others. */
static void test_in_memory(void **state)
{
    static const char file[] = "\x35\0\0\0\0\0\0\0"
                               "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy";
    char before[sizeof folder], shm[] = "/dev/shm/turbo-folder-XXXXXX";
    (void)state;
    strcpy(before, folder);
    for (int k = 0; k < 2; k++) {
        struct statfs fs;
        turbod_st *f = NULL;
        turbo_err err;
        if (k && !mkdtemp(shm))
            break; /* there is none */
        strcpy(folder, k ? shm : before);
        put("one.safetensors", file, sizeof file - 1);
        assert_int_equal(statfs(folder, &fs), 0);
        if (turbod_st_open(folder, "one.safetensors", &f, &err))
            fail_msg("%s", err.text);
        assert_int_equal(turbod_st_at(f, 0)->in_memory, fs.f_type == TMPFS_MAGIC);
        turbod_st_close(f);
        put("one.safetensors", NULL, 0);
        if (k)
            rmdir(shm);
    }
    strcpy(folder, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite),     cmocka_unit_test(test_types),
        cmocka_unit_test(test_mismatches), cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_tied),       cmocka_unit_test(test_shards),
        cmocka_unit_test(test_changed),    cmocka_unit_test(test_links),
        cmocka_unit_test(test_in_memory),
    };
    turbok_device_opts o = {.threads = 2, .spin_us = -1};
    turbo_err err;
    turbod_log_level(-1); /* refusals are the point here */
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->models[0];
    strcpy(folder, "/tmp/turbo-folder-XXXXXX");
    if (!mkdtemp(folder) || turbok_device_open(&o, &device, &err))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    put("config.json", NULL, 0);
    put("model.safetensors", NULL, 0);
    put("model.safetensors.index.json", NULL, 0);
    rc |= rmdir(folder);
    turbok_device_close(device);
    return rc;
}
