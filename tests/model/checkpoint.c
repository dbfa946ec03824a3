/* tests/model/checkpoint.c: writes a checkpoint for whatever tensors an architecture names. The
 * rule for the numbers is that of tests/golden/internlm2-tiny/wide.py; all are exact in their type.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/host.h"
#include "runner.h"
#include "util/err.h"

typedef struct writer {
    FILE *data;
    char *header;
    size_t cap, len;
    uint64_t at;
    int32_t dtype;
    checkpoint_rename rename;
    checkpoint_value value; /* NULL: by the rule of names */
} writer;

uint32_t checkpoint_stream(uint32_t seed, uint32_t i)
{
    uint32_t x = seed + i * 0x9E3779B9u;
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

static void put(writer *w, float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    uint16_t half = (uint16_t)(u >> 16); /* bf16: nothing is lost by cutting */
    if (w->dtype == TURBO_F16)
        half = v < 0 || v > 0
                   ? (uint16_t)((u >> 16 & 0x8000) | (((u >> 23 & 0xff) - 112) << 10 & 0x7c00) |
                                (u >> 13 & 0x3ff))
                   : 0;
    if (w->dtype == TURBO_F32)
        fwrite(&u, 4, 1, w->data);
    else
        fwrite(&half, 2, 1, w->data);
}

static void put_by_name(writer *w, const turbo_tensor_spec *s, uint64_t n)
{
    uint32_t seed = 0x811C9DC5u;
    for (const char *p = s->name; *p; p++)
        seed = (seed ^ (uint8_t)*p) * 0x01000193u;
    size_t len = strlen(s->name);
    bool norm = len > 11 && !strcmp(s->name + len - 11, "norm.weight");
    uint32_t bits = w->dtype == TURBO_F32 ? 24 : 8;
    float scale = 1;
    while (scale * scale * (float)(s->ndim > 1 ? s->dims[1] : 48) > 3)
        scale /= 2;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t x = checkpoint_stream(seed, (uint32_t)i);
        float half_range = (float)(1u << (bits - 1));
        put(w, norm ? 1.0f + ((float)(x >> 28) - 8.0f) / 32.0f
                    : ((float)(x >> (32 - bits)) - half_range) / half_range * scale);
    }
}

static turbo_status emit(void *ctx, const turbo_tensor_spec *s)
{
    static const char *const names[] = {"F32", "F16", "BF16"};
    writer *w = ctx;
    uint64_t cols = 1;
    char shape[96], name[256];
    size_t used = 0;
    for (int32_t i = 0; i < s->ndim; i++) {
        cols *= i ? (uint64_t)s->dims[i] : 1;
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", i ? "," : "",
                                 (long long)s->dims[i]);
    }
    uint64_t n = (uint64_t)s->dims[0] * cols, end = w->at + n * (w->dtype == TURBO_F32 ? 4 : 2);
    snprintf(name, sizeof name, "%s", s->name);
    if (w->rename)
        w->rename(s->name, name);
    if (!*name)
        return TURBO_OK;
    int k = snprintf(w->header + w->len, w->cap - w->len,
                     "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
                     w->len > 1 ? "," : "", name, names[w->dtype], shape, (unsigned long long)w->at,
                     (unsigned long long)end);
    if (k < 0 || (size_t)k >= w->cap - w->len)
        return TURBO_ELIMIT;
    w->len += (size_t)k;
    w->at = end;
    for (uint64_t i = 0; i < n && w->value; i++)
        put(w, w->value(s, (int32_t)(i / cols), (int32_t)(i % cols)));
    if (!w->value)
        put_by_name(w, s, n);
    return TURBO_OK;
}

static bool write_all(const turbo_model_vtbl *vtbl, const char *folder, const turbo_config *config,
                      writer w, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    turbo_model_info info = {.size = sizeof info};
    char path[256];
    FILE *f = NULL;
    bool ok = false;
    w.data = tmpfile();
    w.cap = 65536;
    w.header = malloc(w.cap);
    if (!w.data || !w.header || vtbl->describe(host, config, &info, err))
        goto out;
    w.dtype = info.dtype;
    w.header[w.len++] = '{';
    if (vtbl->expect(host, config, emit, &w, err))
        goto out;
    w.header[w.len++] = '}';
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    f = fopen(path, "wb");
    if (!f)
        goto out;
    uint64_t n = w.len;
    ok = fwrite(&n, 8, 1, f) == 1 && fwrite(w.header, 1, w.len, f) == w.len;
    rewind(w.data);
    char block[4096];
    for (size_t got; ok && (got = fread(block, 1, sizeof block, w.data)) > 0;)
        ok = fwrite(block, 1, got, f) == got;
out:
    if (f)
        ok = !fclose(f) && ok;
    if (w.data)
        fclose(w.data);
    free(w.header);
    return ok;
}

bool checkpoint_write_as(const turbo_model_vtbl *vtbl, const char *folder,
                         const turbo_config *config, checkpoint_rename rename, turbo_err *err)
{
    return write_all(vtbl, folder, config, (writer){.rename = rename}, err);
}

bool checkpoint_write(const turbo_model_vtbl *vtbl, const char *folder, checkpoint_value value,
                      turbo_err *err)
{
    turbo_config *config = NULL;
    bool ok = !turbod_config_open(folder, &config, err) &&
              write_all(vtbl, folder, config, (writer){.value = value}, err);
    turbod_config_close(config);
    return ok;
}
