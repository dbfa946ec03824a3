/* core/cli/plan_text.c: a plan as tables for people and as one JSON object. Main thread. */
#include <math.h>
#include <string.h>

#include "cli/plan.h"

/* 350 GFLOP, 1.71 TB/s: SI prefixes, three digits. */
static const char *si(double v, const char *unit, char text[32])
{
    static const char *const prefix[] = {"", "k", "M", "G", "T", "P", "E"};
    int i = 0;
    while (v >= 1000 && i < 6) {
        v /= 1000;
        i++;
    }
    snprintf(text, 32, "%.*f %s%s", v >= 100 ? 0 : v >= 10 ? 1 : 2, v, prefix[i], unit);
    return text;
}

static const char *seconds(double s, char text[32])
{
    if (s < 1e-3)
        snprintf(text, 32, "%.3g us", s * 1e6);
    else if (s < 1)
        snprintf(text, 32, "%.3g ms", s * 1e3);
    else
        snprintf(text, 32, "%.3g s", s);
    return text;
}

static const char *dtype_name(int32_t dtype)
{
    return dtype == TURBO_F32 ? "f32" : dtype == TURBO_F16 ? "f16" : "bf16";
}

/* The files that are missing hold another type or other tensors than config.json says. Tensors that are not loaded, such as
 * angles of RoPE or the last layer of a picture's encoder, are a hundredth at most. */
static bool other_size(const cli_plan *p)
{
    const uint64_t said = p->model->index_bytes, made = p->model->config_bytes;
    const bool unwanted = p->model->index_more && said > made && said - made <= made / 100;
    return said && said != made && !unwanted;
}

static void text_memory(const cli_plan *p, FILE *out)
{
    const turbod_plan *m = &p->plan;
    const turbo_model_info *i = &p->model->info;
    char a[32], kinds[256];
    fprintf(
        out,
        "model        %s: %d layers, %d heads, %d KV heads of %d, width %d, MLP %d, vocabulary %d, "
        "%s\n",
        i->arch, i->n_layers, i->n_heads, i->n_kv, i->head_dim, i->embed_dim, i->mlp_dim, i->vocab,
        dtype_name(i->dtype));
    if (i->n_experts)
        fprintf(out, "             %d experts of MLP %d, %d of them for a token\n", i->n_experts,
                i->expert_dim, i->n_chosen);
    fprintf(out, "             %s parameters; %s\n", si((double)p->model->weights.params, "", a),
            p->model->from_config ? "weight files are missing: shapes and type from config.json"
                                  : "shapes and types from the headers of the weight files");
    if (other_size(p))
        fprintf(out,
                "             estimate: they make %llu bytes, model.safetensors.index.json says "
                "%llu\n",
                (unsigned long long)p->model->config_bytes,
                (unsigned long long)p->model->index_bytes);
    else if (p->model->index_bytes > p->model->config_bytes)
        fprintf(
            out,
            "             model.safetensors.index.json says %llu bytes more, in %d tensors that "
            "are not loaded\n",
            (unsigned long long)(p->model->index_bytes - p->model->config_bytes),
            p->model->index_more);
    else if (p->model->index_bytes)
        fputs("             they make as many bytes as model.safetensors.index.json says\n", out);
    turbod_weights_kinds(&p->model->weights, kinds, sizeof kinds);
    fprintf(out, "matrices     %s\n", kinds);
    fprintf(out, "memory       %s: %s free", p->device, turbod_plan_size(p->memory, a));
    if (p->card)
        fprintf(out, "; %s", p->gpu->memory_note);
    else if (!p->cpu)
        fprintf(out, "; estimate: weights as stored, the rest as on a CPU (%s)", p->guess.text);
    fputs("\n\n", out);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++)
        fprintf(out, "  %-10s %18llu  %9.2f MiB\n", turbod_mem_names[k],
                (unsigned long long)m->bytes[k], (double)m->bytes[k] / 0x1p20);
    fprintf(out, "  %-10s %18llu  %9.2f MiB\n\n", "total", (unsigned long long)m->total,
            (double)m->total / 0x1p20);
    fprintf(out, "KV           %.0f bytes a token, %llu a block of %d tokens\n",
            turbod_plan_token_bytes(m), (unsigned long long)m->block_bytes, m->dims.block_tokens);
    if (!p->fits)
        return;
    fprintf(out, "             %d blocks, %lld tokens%s\n", m->blocks,
            (long long)turbod_plan_tokens(m),
            m->blocks == m->most_blocks ? ": as many as max_batch_size sequences can use" : "");
    fprintf(out, "session_len  %d\n", m->session_len);
}

static double rate(const cli_plan *p, double batch, double len)
{
    return batch / turbod_roof_step(&p->roof, batch, len).seconds;
}

static void text_lengths(const cli_plan *p, FILE *out)
{
    int64_t lens[CLI_PLAN_LENGTHS];
    int n = cli_plan_lengths(p, lens);
    char a[32];
    fprintf(out, "\n%9s %12s %9s %14s %12s %15s\n", "length", "KV of one", "at once",
            "FLOP a token", "alone tok/s", "at once tok/s");
    for (int i = 0; i < n; i++) {
        double len = (double)lens[i];
        int64_t fit =
            p->fits && lens[i] <= p->plan.session_len ? turbod_plan_at_once(&p->plan, lens[i]) : 0;
        int64_t batch = fit < p->plan.max_batch ? fit : p->plan.max_batch;
        fprintf(out, "%9lld %8.2f MiB %9lld %14s %12.4g ", (long long)lens[i],
                len * p->roof.kv_token / 0x1p20, (long long)fit,
                si(turbod_roof_flop(&p->roof, len), "", a), rate(p, 1, len));
        if (batch)
            fprintf(out, "%15.4g\n", rate(p, (double)batch, len));
        else
            fprintf(out, "%15s\n", "-");
    }
    if (p->fits)
        fprintf(out,
                "at once: sequences whose KV fits; a step takes at most max_batch_size %d. tok/s: "
                "the device's limit, no overhead.\n",
                p->plan.max_batch);
}

static void text_example(const cli_plan *p, FILE *out)
{
    double len = (double)(p->in + p->out), kv = len * p->roof.kv_token * (double)p->batch;
    char a[32];
    fprintf(out, "\nexample      %lld sequences of %lld + %lld tokens\n", (long long)p->batch,
            (long long)p->in, (long long)p->out);
    fprintf(out, "  KV         %.3f GB (%.0f bytes)\n", kv * 1e-9, kv);
    if (p->model->info.n_heads != p->model->info.n_kv)
        fprintf(out, "             %.2f GB (%.0f bytes) if each of the %d heads had its own\n",
                cli_plan_full_heads(p) * 1e-9, cli_plan_full_heads(p), p->model->info.n_heads);
    fprintf(out, "  a token    %s at length %.0f", si(turbod_roof_flop(&p->roof, len), "FLOP", a),
            len);
    fprintf(out, "; %s counting one product of attention, as the lesson does\n",
            si(turbod_roof_flop_lesson(&p->roof, len), "FLOP", a));
}

static void text_roof(const cli_plan *p, FILE *out)
{
    double len = p->model ? (double)(p->in + p->out) : 0, at;
    const turbod_roof *r = &p->roof;
    turbod_step one = turbod_roof_step(r, 1, len);
    char a[32], b[32];
    fprintf(out, "\nroofline     %s: %s, %s", p->device, si(r->flops, "FLOP/s", a),
            si(r->bandwidth, "B/s", b));
    fprintf(out, "\n             %s\n", p->note);
    if (!(r->params > 0)) {
        fputs("  the model has no weights: nothing to compute\n", out);
        return;
    }
    fprintf(out, "  one token  %s, %s", si(turbod_roof_flop(r, len), "FLOP", a),
            si(turbod_roof_read(r, 1) + r->kv_token * len, "B", b));
    fprintf(out, ": %s of computing, %s of reading", seconds(one.compute, a),
            seconds(one.memory, b));
    fprintf(out, ": bound by %s, %.4g tokens/s\n",
            one.compute > one.memory ? "arithmetic" : "memory", 1 / one.seconds);
    fprintf(out, "  turning    weights are read faster than used from batch %.0f on\n",
            ceil(turbod_roof_ridge(r)));
    if (!p->model)
        return;
    at = turbod_roof_ridge_at(r, len);
    if (isfinite(at))
        fprintf(out, "             with attention at length %.0f: from batch %.0f on\n", len,
                ceil(at));
    else
        fprintf(out,
                "             with attention at length %.0f: never, its KV is read slower than "
                "used at any batch\n",
                len);
    turbod_step many = turbod_roof_step(r, (double)p->batch, len);
    fprintf(out, "  batch %-5lld %s of computing", (long long)p->batch, seconds(many.compute, a));
    fprintf(out, ", %s of reading: %.4g tokens/s\n", seconds(many.memory, a),
            (double)p->batch / many.seconds);
}

void cli_plan_text(const cli_plan *p, FILE *out)
{
    char a[32], b[32];
    if (p->model) {
        text_memory(p, out);
        if (p->roof.params > 0)
            text_lengths(p, out);
        text_example(p, out);
    } else {
        fprintf(out, "%s parameters, %s", si(p->nominal, "", a), si(p->roof.weights, "B", b));
        if (p->memory > 0)
            fprintf(out, ": %s %s of %s", p->fits ? "fits into the" : "does not fit into the",
                    si(p->memory, "B", a), p->device);
        putc('\n', out);
    }
    text_roof(p, out);
}

/* ---- JSON -------------------------------------------------------------------------------------------- */

static void json_string(FILE *out, const char *key, const char *s)
{
    fprintf(out, "\"%s\":", key);
    cli_put_json(out, s, strlen(s));
}

static void json_number(FILE *out, const char *key, double v)
{
    if (isfinite(v))
        fprintf(out, "\"%s\":%.17g", key, v);
    else
        fprintf(out, "\"%s\":null", key);
}

static void json_step(FILE *out, const cli_plan *p, const char *key, double batch, double len)
{
    turbod_step s = turbod_roof_step(&p->roof, batch, len);
    fprintf(out, "\"%s\":{", key);
    json_number(out, "compute_s", s.compute);
    putc(',', out);
    json_number(out, "memory_s", s.memory);
    putc(',', out);
    json_number(out, "step_s", s.seconds);
    putc('}', out);
}

static void json_model(const cli_plan *p, FILE *out)
{
    const turbod_plan *m = &p->plan;
    int64_t lens[CLI_PLAN_LENGTHS];
    int n = cli_plan_lengths(p, lens);
    char kinds[256];
    fputs("\"model\":{", out);
    json_string(out, "arch", p->model->info.arch);
    turbod_weights_kinds(&p->model->weights, kinds, sizeof kinds);
    fprintf(out, ",\"params\":%llu,\"from_config\":%s,",
            (unsigned long long)p->model->weights.params, p->model->from_config ? "true" : "false");
    json_string(out, "matrices", kinds);
    fputs("},\"bytes\":{", out);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++)
        fprintf(out, "%s\"%s\":%llu", k ? "," : "", turbod_mem_names[k],
                (unsigned long long)m->bytes[k]);
    fprintf(out,
            "},\"total_bytes\":%llu,\"free_bytes\":%.0f,\"exact\":%s,\"fits\":%s,"
            "\"kv_token_bytes\":%.17g,\"kv_block_bytes\":%llu,\"block_tokens\":%d,\"blocks\":%d,"
            "\"tokens\":%lld,\"session_len\":%d,\"max_batch_size\":%d,\"lengths\":[",
            (unsigned long long)m->total, p->memory,
            (p->cpu || p->card) && !other_size(p) ? "true" : "false", p->fits ? "true" : "false",
            turbod_plan_token_bytes(m), (unsigned long long)m->block_bytes, m->dims.block_tokens,
            m->blocks, (long long)turbod_plan_tokens(m), m->session_len, m->max_batch);
    for (int i = 0; i < n; i++) {
        fprintf(out, "%s{\"length\":%lld,\"at_once\":%lld,", i ? "," : "", (long long)lens[i],
                (long long)(lens[i] <= m->session_len ? turbod_plan_at_once(m, lens[i]) : 0));
        json_number(out, "flop_token", turbod_roof_flop(&p->roof, (double)lens[i]));
        putc('}', out);
    }
    double len = (double)(p->in + p->out);
    fprintf(out,
            "],\"example\":{\"batch\":%lld,\"in\":%lld,\"out\":%lld,\"kv_bytes\":%.0f,"
            "\"kv_bytes_full_heads\":%.0f,",
            (long long)p->batch, (long long)p->in, (long long)p->out,
            len * p->roof.kv_token * (double)p->batch, cli_plan_full_heads(p));
    json_number(out, "flop_token", turbod_roof_flop(&p->roof, len));
    putc(',', out);
    json_number(out, "flop_token_lesson", turbod_roof_flop_lesson(&p->roof, len));
    fputs("},", out);
}

void cli_plan_json(const cli_plan *p, FILE *out)
{
    double len = p->model ? (double)(p->in + p->out) : 0;
    putc('{', out);
    if (p->model)
        json_model(p, out);
    fputs("\"roofline\":{", out);
    json_string(out, "device", p->device);
    putc(',', out);
    json_string(out, "source", p->note);
    putc(',', out);
    json_number(out, "flops", p->roof.flops);
    putc(',', out);
    json_number(out, "bandwidth", p->roof.bandwidth);
    putc(',', out);
    json_number(out, "flop_token", turbod_roof_flop(&p->roof, len));
    putc(',', out);
    json_number(out, "bytes_token", turbod_roof_read(&p->roof, 1) + p->roof.kv_token * len);
    putc(',', out);
    json_step(out, p, "one", 1, len);
    putc(',', out);
    json_step(out, p, "batch", (double)p->batch, len);
    putc(',', out);
    json_number(out, "turning_batch", turbod_roof_ridge(&p->roof));
    putc(',', out);
    json_number(out, "turning_batch_with_attention", turbod_roof_ridge_at(&p->roof, len));
    fputs("}}\n", out);
}
