/* core/cli/plan.c: turbo plan: the memory a model will take and how fast a device can be with it, before
 * a weight is read. This file gathers; plan_text.c and plan_svg.c show. Main thread. */
#include "cli/plan.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#include "conf/table.h"
#include "engine/media.h"
#include "util/err.h"

#define MEASURE_BYTES                                                                              \
    ((size_t)256 << 20) /* several times the caches of the machines this runs on */
#define MEASURE_ROUNDS 5

static const cli_flag flags[] = {
    {"memory", CLI_TEXT, "SIZE", "Free memory to plan with, such as 24GiB. Default: the device's.",
     0, 0},
    {"batch", CLI_INT, "B", "Sequences of the worked example. Default: 16.", 1, 65536},
    {"in", CLI_INT, "TOKENS", "Their prompts. Default: 512.", 1, 16777216},
    {"out", CLI_INT, "TOKENS", "Their answers. Default: 32.", 0, 16777216},
    {"params", CLI_NUM, "N",
     "Parameters, such as 175e9: without MODEL all there is to know; with it the nominal number "
     "that FLOP a token are counted with.",
     1e3, 1e15},
    {"bits", CLI_NUM, "BITS", "Bits of a parameter, with --params and no MODEL. Default: 16.", 1,
     64},
    {"svg", CLI_TEXT, "FILE", "Draws memory and roofline into FILE.", 0, 0},
    {"json", CLI_SWITCH, "", "Prints one JSON object.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

/* What --device may have meant: the names that begin with it, else the nearest one, else all there are. */
static turbo_status no_device(const char *name, turbo_err *err)
{
    /* what turbod takes, and what people say, names no card */
    if (!strcmp(name, "auto") || !strncmp(name, "cuda", 4) || !strncmp(name, "gpu", 3))
        return turbod_err(
            err, TURBOD_EUSAGE,
            "device is \"%.16s\"; turbo plan takes cpu or a card by its name, such as "
            "--device h200; turbo plan --help lists them",
            name);
    const char *names[32] = {"cpu"}, *meant[32];
    size_t n = 1, k = 0;
    char list[160];
    for (size_t i = 0; i < turbod_n_gpus && n < 32; i++)
        names[n++] = turbod_gpus[i].id;
    for (size_t i = 0; i < n && *name; i++)
        if (!strncasecmp(names[i], name, strlen(name)))
            meant[k++] = names[i];
    if (!k && (meant[0] = turbod_nearest(name, names, n)))
        k = 1;
    turbod_either(k ? meant : names, k ? k : n, list, sizeof list);
    return turbod_err(err, TURBOD_EUSAGE, "device \"%.40s\" is not in the table; %s %s%s", name,
                      k ? "did you mean" : "use", list, k ? "?" : "");
}

/* Speed of this machine as the engine would use it. */
static turbo_status measure_cpu(const turbod_engine_opts *o, cli_plan *p, turbo_err *err)
{
    turbok_device_opts dev = {.threads = o->threads, .pin = o->pin, .spin_us = -1};
    turbok_device *d = NULL;
    turbok_speed speed;
    turbo_status st = turbod_engine_isa(o->isa, &dev.isa, err);
    if (!st)
        st = turbok_device_open(&dev, &d, err);
    if (st)
        return st;
    st = turbok_measure(d, MEASURE_BYTES, MEASURE_ROUNDS, &speed, err);
    snprintf(p->device, sizeof p->device, "%s", turbok_device_name(d));
    snprintf(p->note, sizeof p->note, "measured now: fp32 multiply-adds, reads of all threads");
    turbok_device_close(d);
    p->roof.flops = speed.fma_flops;
    p->roof.bandwidth = speed.read_bytes_s;
    return st;
}

static turbo_status choose_device(const cli_args *a, turbod_engine_opts *o, cli_plan *p,
                                  turbo_err *err)
{
    const char *name = a->conf->device, *memory = cli_text(a, "memory");
    const turbod_gpu *g = turbod_gpu_find(name);
    turbo_status st = TURBO_OK;
    p->cpu = !strcmp(name, "cpu");
    if (!p->cpu && !g)
        return no_device(name, err);
    if (memory && (!turbod_conf_size(memory, &o->memory_free) || !o->memory_free))
        return turbod_err(err, TURBOD_EUSAGE,
                          "--memory is \"%.40s\"; a size such as 24GiB is needed", memory);
    if (p->cpu) {
        st = measure_cpu(o, p, err);
    } else {
        p->gpu = g;
        snprintf(p->device, sizeof p->device, "%s", g->name);
        snprintf(p->note, sizeof p->note, "%s", g->note);
        p->roof.flops = g->flops;
        p->roof.bandwidth = g->bandwidth;
        o->memory_free = o->memory_free ? o->memory_free : (uint64_t)g->memory;
    }
    return st;
}

/* The backend of cards, asked what things take on one that need not be there. */
static turbo_status describe_card(const turbod_engine_opts *o, const turbo_model_info *m,
                                  cli_plan *p, turbo_err *err)
{
    const turbod_gpu *g = p->gpu;
    const turbok_card card = {
        .name = g->name,
        .memory = (uint64_t)g->memory,
        .context = (uint64_t)g->context,
        .sm_count = g->sm_count,
        .major = g->capability / 10,
        .minor = g->capability % 10,
    };
    turbok_device_opts dev = {
        .on = TURBOK_ON_CUDA, .path = o->backend_path, .threads = 1, .spin_us = -1, .card = &card};
    turbo_status st = turbod_engine_precision(o->device_precision, m->dtype, &dev.act_dtype, err);
    if (st)
        return st;
    st = turbok_device_open(&dev, &p->card, &p->guess);
    if (st && st != TURBO_EUNSUPPORTED)
        *err = p->guess;
    return st == TURBO_EUNSUPPORTED ? TURBO_OK : st;
}

/* Which weights a token passes: all matrices but the table it only reads a row of, and the experts it does
 * not choose; a table that serves as the head too is passed as well. */
static void fill_roof(cli_plan *p)
{
    const turbod_weights_sums *w = &p->model->weights;
    const turbo_model_info *m = &p->model->info;
    bool tied = !w->n_heads;
    p->roof.params =
        p->nominal > 0 ? p->nominal : (double)(w->matmul - w->idle + (tied ? w->table : 0));
    p->roof.weights = (double)(w->matmul_stored + (tied ? w->table_stored : 0));
    p->roof.idle = (double)w->idle_stored;
    p->roof.miss = m->n_experts > 0 ? 1 - (double)m->n_chosen / m->n_experts : 0;
    p->roof.kv_token = turbod_plan_token_bytes(&p->plan);
    p->roof.heads = (double)m->n_layers * m->n_heads * m->head_dim;
}

/* What does not fit is shown all the same; what makes no sense is refused. */
static turbo_status plan_model(const turbod_engine_opts *o, const turbod_registry *registry,
                               const turbod_plan_model *m, cli_plan *p, turbo_err *err)
{
    turbod_media_facts media;
    turbod_plan_in in = {.info = &m->info,
                         .vtbl = m->vtbl,
                         .weights = &m->weights,
                         .as_stored = !p->cpu && !p->card};
    turbod_engine_plan_in(o, &in);
    p->model = m;
    p->memory = (double)in.vacant;
    turbo_status st =
        turbod_media_describe(registry, m->vtbl, m->config, m->info.vocab, &media, err);
    if (st)
        return st;
    in.images = turbod_media_bytes(&media, o->image_bytes);
    if (p->card)
        turbod_engine_plan_device(p->card, o, &m->info, &media, m->weights.quantised, &in);
    st = turbod_plan_make(&in, &p->plan, &p->why);
    p->fits = !st;
    if (st && (st != TURBO_ENOMEM || !p->plan.block_bytes)) {
        *err = p->why;
        return st;
    }
    fill_roof(p);
    return TURBO_OK;
}

static turbo_status draw(const cli_plan *p, const char *path, turbo_err *err)
{
    FILE *f = fopen(path, "we");
    if (!f)
        return turbod_err(err, TURBO_EIO, "%.150s: %s", path, strerror(errno));
    cli_plan_svg(p, f);
    bool bad = ferror(f);
    bad |= fclose(f) != 0;
    return bad ? turbod_err(err, TURBO_EIO, "writing %.150s failed", path) : TURBO_OK;
}

int cli_plan_lengths(const cli_plan *p, int64_t out[CLI_PLAN_LENGTHS])
{
    int64_t asked = p->in + p->out, most = p->model->info.max_position;
    int n = 0;
    bool placed = false;
    for (int64_t len = 512; len <= most && n < CLI_PLAN_LENGTHS - 2; len *= 2) {
        if (!placed && asked < len)
            out[n++] = asked;
        placed |= asked <= len;
        out[n++] = len;
    }
    if (!placed)
        out[n++] = asked;
    return n;
}

double cli_plan_full_heads(const cli_plan *p)
{
    turbok_kv_dims full = p->plan.dims;
    full.n_kv = p->model->info.n_heads;
    return (double)turbok_kv_block_bytes(&full) / full.block_tokens * (double)p->batch *
           (double)(p->in + p->out);
}

static turbo_status gather(cli_args *a, turbod_registry **registry, turbod_plan_model *m,
                           cli_plan *p, turbo_err *err)
{
    turbod_engine_opts o;
    bool model = a->n_words || *a->conf->model;
    turbo_status st = turbod_service_engine_opts(a->conf, &o, err);
    p->nominal = cli_num(a, "params", 0);
    p->batch = cli_int(a, "batch", 16);
    p->in = cli_int(a, "in", 512);
    p->out = cli_int(a, "out", 32);
    if (!st && !model && !cli_given(a, "params"))
        st = turbod_err(err, TURBOD_EUSAGE,
                        "no model: turbo plan MODEL, or turbo plan --params 175e9");
    if (!st && model && cli_given(a, "bits"))
        st = turbod_err(err, TURBOD_EUSAGE, "--bits is for --params without a model");
    if (!st && !model && *a->conf->quantize)
        st = turbod_err(err, TURBOD_EUSAGE,
                        "quantize is for a model; with --params alone, --bits 4 says it");
    if (!st)
        st = choose_device(a, &o, p, err);
    if (st)
        return st;
    if (!model) {
        p->roof.params = p->nominal;
        p->roof.weights = p->nominal * cli_num(a, "bits", 16) / 8;
        p->memory = (double)o.memory_free;
        p->fits = !o.memory_free || p->roof.weights <= p->memory;
        return TURBO_OK;
    }
    p->folder = a->n_words ? a->words[0] : a->conf->model;
    turbod_weights_opts w = {.model_format = a->conf->model_format, .quantize = a->conf->quantize};
    st = turbod_registry_open(turbod_plugin_path(a->conf->plugin_path), registry, err);
    if (!st)
        st = turbod_plan_model_open(p->folder, *registry, m, err);
    if (!st && p->gpu)
        st = describe_card(&o, &m->info, p, err);
    w.device = p->card;
    if (!st)
        st = turbod_plan_model_count(p->folder, &w, m, err);
    return st ? st : plan_model(&o, *registry, m, p, err);
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    turbod_registry *registry = NULL;
    turbod_plan_model model = {0};
    cli_plan p = {0};
    turbo_status st = gather(a, &registry, &model, &p, &err);
    if (!st && cli_given(a, "svg"))
        st = draw(&p, cli_text(a, "svg"), &err);
    if (!st) {
        if (cli_given(a, "json"))
            cli_plan_json(&p, stdout);
        else
            cli_plan_text(&p, stdout);
    }
    turbok_device_close(p.card);
    turbod_plan_model_free(&model);
    turbod_registry_close(registry);
    if (!st && p.model && !p.fits) {
        err = p.why;
        st = TURBO_ENOMEM;
    }
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_plan_cmd = {
    .name = "plan",
    .words = "[MODEL] [flags]",
    .summary = "The memory a model will take, and how fast a device can be with it.",
    .about =
        "Needs config.json, no weights; where all weight files are there, their headers are read,\n"
        "else what it counts is compared with the size that model.safetensors.index.json says.\n"
        "The bytes are those turbod will take with the same options, to the byte, on cpu and on\n"
        "a card, which need not be there: what a card has, and what its driver takes of it, are\n"
        "known as `turbo plan` says. A build without the CUDA backend estimates a card.\n"
        "tok/s are limits of the device, without overhead. Exit status 71: it does not fit, and "
        "the\n"
        "last line says what would help.\n"
        "--device is here cpu, this machine, measured, or a card by its datasheet: rtx3090, "
        "rtx4090,\n"
        "rtx4090-tensor, a10, l4, l40s, a100-40g, a100-80g, h100, h200.\n",
    .flags = flags,
    .keys = "model plugin_path log_level model_format quantize engine",
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
