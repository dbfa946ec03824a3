/* tests/unit/tiny_model.c: see tiny_model.h. The formula is that of the published test vectors:
 * val(k,r,c) = (((7919 k + 131 r + 17 c) mod 201) - 100) / 250, nw(k)[c] = 1 + 0.1 ((k+c) mod 3). */
#include "tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct writer {
    const tiny_model *m;
    char header[65536];
    size_t header_len;
    uint64_t at;
    FILE *data;
    uint32_t seed;
} writer;

static float value(writer *w, int k, int64_t r, int64_t c, int64_t cols)
{
    if (!w->m->random)
        return (float)((double)((7919 * (int64_t)k + 131 * r + 17 * c) % 201 - 100) / 250.0);
    double sum = 0; /* about normal, scaled as a linear layer of that width usually is */
    for (int i = 0; i < 4; i++) {
        w->seed = w->seed * 1664525u + 1013904223u;
        sum += (double)(w->seed >> 8) / (double)(1 << 24) - 0.5;
    }
    return (float)(sum * 1.7 / sqrt((double)cols));
}

static void put(writer *w, float v)
{
    if (w->m->bf16) {
        uint32_t u;
        memcpy(&u, &v, 4);
        uint16_t h = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
        fwrite(&h, 2, 1, w->data);
    } else {
        fwrite(&v, 4, 1, w->data);
    }
}

#define BIAS 1000 /* k of a bias: a vector of small random numbers */

/* cols 0: a norm weight, or a bias. */
static void tensor(writer *w, const char *name, int k, int64_t rows, int64_t cols)
{
    int64_t n = rows * (cols ? cols : 1);
    uint64_t end = w->at + (uint64_t)n * (w->m->bf16 ? 2 : 4);
    char shape[64];
    if (cols)
        snprintf(shape, sizeof shape, "%lld,%lld", (long long)rows, (long long)cols);
    else
        snprintf(shape, sizeof shape, "%lld", (long long)rows);
    w->header_len += (size_t)snprintf(
        w->header + w->header_len, sizeof w->header - w->header_len,
        "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        w->header_len > 1 ? "," : "", name, w->m->bf16 ? "BF16" : "F32", shape,
        (unsigned long long)w->at, (unsigned long long)end);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < (cols ? cols : 1); c++)
            put(w, cols || k == BIAS ? value(w, k, r, c, cols ? cols : 100) : 1.0f + 0.1f * (float)((k + r) % 3));
    w->at = end;
}

static void write_config(const tiny_model *m, const char *folder)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "wb");
    fprintf(f,
            "{\"architectures\":[\"InternLM2ForCausalLM\"],\"model_type\":\"internlm2\","
            "\"vocab_size\":%d,\"hidden_size\":%d,\"num_hidden_layers\":%d,"
            "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"intermediate_size\":%d,"
            "\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-5,\"rope_theta\":10000,"
            "\"bias\":%s,\"tie_word_embeddings\":%s,\"bos_token_id\":1,\"eos_token_id\":2,\"torch_dtype\":\"%s\"%s%s}",
            m->vocab, m->embed, m->layers, m->heads, m->kv_heads, m->inner, m->max_position,
            m->bias ? "true" : "false", m->tied ? "true" : "false", m->bf16 ? "bfloat16" : "float32", m->extra && *m->extra ? "," : "",
            m->extra ? m->extra : "");
    fclose(f);
}

void tiny_model_write(const tiny_model *m, char *folder)
{
    writer *w = calloc(1, sizeof *w);
    char path[128], name[96];
    strcpy(folder, "/tmp/turbo-tiny-XXXXXX");
    if (!w || !mkdtemp(folder))
        abort();
    w->m = m;
    w->seed = (uint32_t)m->random;
    w->data = tmpfile();
    w->header[w->header_len++] = '{';
    int64_t D = m->embed / m->heads;
    tensor(w, "model.tok_embeddings.weight", 1, m->vocab, m->embed);
    if (!m->tied)
        tensor(w, "output.weight", 2, m->vocab, m->embed);
    tensor(w, "model.norm.weight", 5, m->embed, 0);
    for (int l = 0; l < m->layers; l++) {
        const struct {
            const char *name;
            int k;
            int64_t rows, cols;
        } t[] = {
            {"attention.wqkv", 10 + 10 * l, (m->heads + 2 * m->kv_heads) * D, m->embed},
            {"attention.wo", 11 + 10 * l, m->embed, m->heads * D},
            {"feed_forward.w1", 12 + 10 * l, m->inner, m->embed},
            {"feed_forward.w3", 13 + 10 * l, m->inner, m->embed},
            {"feed_forward.w2", 14 + 10 * l, m->embed, m->inner},
            {"attention_norm", l, m->embed, 0},
            {"ffn_norm", l + 1, m->embed, 0},
        };
        for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, t[i].name);
            tensor(w, name, t[i].k, t[i].rows, t[i].cols);
            if (m->bias && i < 2) {
                snprintf(name, sizeof name, "model.layers.%d.%s.bias", l, t[i].name);
                tensor(w, name, BIAS, t[i].rows, 0);
            }
        }
    }
    w->header[w->header_len++] = '}';
    while (w->header_len % 8)
        w->header[w->header_len++] = ' ';
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "wb");
    uint64_t n = w->header_len;
    fwrite(&n, 8, 1, f);
    fwrite(w->header, 1, w->header_len, f);
    rewind(w->data);
    char block[4096];
    size_t got;
    while ((got = fread(block, 1, sizeof block, w->data)) > 0)
        fwrite(block, 1, got, f);
    fclose(f);
    fclose(w->data);
    free(w);
    write_config(m, folder);
}

void tiny_model_overflow(const tiny_model *m, const char *folder)
{
    const float huge = 3e38f;
    char path[128];
    uint64_t header;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "r+b");
    if (!f || fread(&header, 8, 1, f) != 1)
        abort();
    /* Behind the two tables and the last norm: wqkv of layer 0, whose first group is 2 heads of q, then k. */
    int32_t D = m->embed / m->heads, row = m->heads / m->kv_heads * D;
    long at = 8 + (long)header + 4L * (2L * m->vocab * m->embed + m->embed + (long)row * m->embed);
    int bad = fseek(f, at, SEEK_SET);
    for (int i = 0; i < m->embed; i++)
        bad |= fwrite(&huge, 4, 1, f) != 1;
    if (fclose(f) || bad)
        abort();
}

void tiny_model_remove(const char *folder)
{
    static const char *const files[] = {"config.json", "model.safetensors", "generation_config.json",
                                        "tokenizer.model", "tokenizer_config.json"};
    char path[160];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}
