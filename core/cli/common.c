/* core/cli/common.c: opening a model in this process, reading texts and ids, writing JSON.
 * Main thread. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "daemon/daemon.h"
#include "plugin/host.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/utf8.h"
#include "turbok.h"
#include "weights/config.h"

#define TEXT_MAX ((size_t)256 << 20)

int cli_fail(turbo_status st, const turbo_err *err)
{
    fprintf(stderr, "turbo: %s\n", err->text);
    return st == TURBOD_EUSAGE ? CLI_USAGE : turbod_exit_code(st);
}

int cli_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("turbo: ", stderr);
    vfprintf(stderr, fmt, ap);
    putc('\n', stderr);
    va_end(ap);
    return CLI_USAGE;
}

/* The KV cache of `tokens` tokens, or of one sequence of session_len, as an absolute size. */
static turbo_status small_cache(cli_args *a, const turbod_service *s, int64_t tokens_wanted,
                                turbo_err *err)
{
    turbo_config *config = NULL;
    const turbo_model_vtbl *v = NULL;
    turbo_model_info info = {.size = sizeof info};
    turbod_engine_opts o;
    turbo_status st = turbod_service_engine_opts(a->conf, &o, err);
    if (!st)
        st = turbod_config_open(a->conf->model, &config, err);
    if (!st)
        st = turbod_registry_model_for(s->registry, config, &v, err);
    if (!st)
        st = v->describe(turbod_host_table(), config, &info, err);
    turbod_config_close(config);
    int32_t kv_type = -1;
    if (!st)
        st = turbod_kv_type_of(a->conf, &kv_type, err);
    if (st)
        return st;
    int64_t len = o.session_len ? o.session_len : info.max_position, tokens = o.block_tokens;
    len = tokens_wanted ? tokens_wanted : len;
    turbok_kv_dims wanted = turbod_engine_kv(&o), dims = turbod_plan_kv_dims(&info, &wanted);
    uint64_t block = turbok_kv_block_bytes(&dims), n = (uint64_t)((len + tokens - 1) / tokens),
             bytes;
    char text[32];
    if (!block || __builtin_mul_overflow(block, n, &bytes))
        return TURBO_OK; /* the engine says what is wrong */
    snprintf(text, sizeof text, "%llu", (unsigned long long)(bytes < 65536 ? 65536 : bytes));
    return turbod_conf_set(a->conf, "cache_max_entry_count", text, err);
}

turbo_status cli_open_model(cli_args *a, turbod_service *s, bool need_chat, turbo_err *err)
{
    return cli_open_model_for(a, s, need_chat, 0, err);
}

turbo_status cli_open_model_for(cli_args *a, turbod_service *s, bool need_chat, int64_t tokens,
                                turbo_err *err)
{
    turbod_progress bar;
    turbo_status st = TURBO_OK;
    if (a->n_words && a->words[0][0])
        st = turbod_conf_set(a->conf, "model", a->words[0], err);
    if (!st && !*a->conf->model)
        st = turbod_err(err, TURBOD_EUSAGE, "no model: turbo %s %s", a->cmd->name, a->cmd->words);
    if (!st)
        st = turbod_service_init(s, a->conf, err);
    if (!st && turbod_conf_origin(a->conf, "cache_max_entry_count") == TURBOD_FROM_DEFAULT)
        st = small_cache(a, s, tokens, err);
    if (!st) {
        turbod_progress_init(&bar);
        st = turbod_service_load(s, need_chat, bar.terminal ? turbod_progress_step : NULL, &bar,
                                 err);
        turbod_progress_end(&bar);
    }
    if (st)
        turbod_service_close(s);
    return st;
}

turbo_status cli_parse_ids(const char *text, int32_t **ids, size_t *n, turbo_err *err)
{
    size_t len = strlen(text), count = 0;
    int32_t *out = calloc(len / 2 + 1, sizeof *out);
    if (!out)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu ids", len / 2);
    for (const char *p = text; *p;) {
        size_t digits = strspn(p, "0123456789");
        int64_t v = 0;
        if (!digits || digits > 10) {
            free(out);
            return turbod_err(
                err, TURBOD_EUSAGE,
                "\"%.20s\" is no token id; ids are numbers with commas between: 1,4,7", p);
        }
        for (size_t i = 0; i < digits; i++)
            v = v * 10 + (p[i] - '0');
        if (v > INT32_MAX) {
            free(out);
            return turbod_err(err, TURBOD_EUSAGE, "%lld is no token id", (long long)v);
        }
        out[count++] = (int32_t)v;
        p += digits;
        p += strspn(p, ", \t\n\r");
    }
    if (!count) {
        free(out);
        return turbod_err(err, TURBOD_EUSAGE, "no token ids given");
    }
    *ids = out;
    *n = count;
    return TURBO_OK;
}

static turbo_status read_bytes(const char *path, size_t most, turbod_buf *out, turbo_err *err)
{
    bool in = !path || !strcmp(path, "-");
    const char *name = in ? "standard input" : path;
    int fd = in ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    char chunk[65536];
    turbo_status st = TURBO_OK;
    turbod_buf_init(out, most);
    turbod_buf_str(out, "");
    if (fd < 0)
        return turbod_err(err, errno == ENOENT ? TURBO_ENOENT : TURBO_EIO, "%s: %s", name,
                          strerror(errno));
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR && !cli_interrupted())
            continue;
        if (n < 0)
            st = turbod_err(err, TURBO_EIO, "%s: %s", name, strerror(errno));
        if (n <= 0 || !turbod_buf_add(out, chunk, (size_t)n))
            break;
    }
    if (!in)
        close(fd);
    if (!st && out->failed)
        st = turbod_err(err, TURBO_ELIMIT, "%s is longer than %zu MiB", name, most >> 20);
    return st;
}

turbo_status cli_read_text(const char *path, turbod_buf *out, turbo_err *err)
{
    turbo_status st = read_bytes(path, TEXT_MAX, out, err);
    if (!st && !turbod_utf8_valid(out->ptr, out->len))
        st = turbod_err(err, TURBO_EDATA, "%s is not UTF-8",
                        path && strcmp(path, "-") ? path : "standard input");
    return st;
}

turbo_status cli_read_image(const turbod_service *s, const char *path, turbod_image **out,
                            turbo_err *err)
{
    const turbod_media_facts *media = &turbod_engine_facts_of(s->engine)->media;
    turbod_buf b;
    if (!media->n_rows)
        return turbod_err(err, TURBO_EUNSUPPORTED, "this model takes no images");
    turbo_status st = read_bytes(path, TURBOD_IMAGE_MAX_FILE + 1, &b, err);
    if (!st)
        st = turbod_image_new(b.ptr, b.len, &media->fit, out, err);
    turbod_buf_free(&b);
    return st;
}

void cli_put_float(FILE *out, float v)
{
    fprintf(out, "%.9g", (double)v); /* 9 significant digits bring back every fp32 */
}

void cli_put_json(FILE *out, const char *s, size_t n)
{
    turbod_buf b;
    size_t max;
    if (!turbod_mul(n + 1, 6, &max))
        return;
    turbod_buf_init(&b, max + 1);
    turbod_buf_json(&b, s, n);
    putc('"', out);
    if (b.len)
        fwrite(b.ptr, 1, b.len, out);
    putc('"', out);
    turbod_buf_free(&b);
}
