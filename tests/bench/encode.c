/* tests/bench/encode.c: one tokenizer, loaded once, encodes files of texts at a script's word (tests/bench/tokenizer.py):
 * each line of standard input "FILE OUT" is answered with the seconds that encoding took; the ids go to OUT as 32-bit
 * numbers.
 *
 *   encode FOLDER    (TURBO_PLUGIN_PATH names the plugins) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine.h"
#include "plugin/host.h"
#include "plugin/registry.h"

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    long size = f && !fseek(f, 0, SEEK_END) ? ftell(f) : -1;
    if (size > 0 && !fseek(f, 0, SEEK_SET) && (text = malloc((size_t)size)) != NULL)
        *n = fread(text, 1, (size_t)size, f);
    if (f)
        fclose(f);
    return text;
}

/* Texts end behind a byte 0xff, which no UTF-8 has; each is encoded for itself. */
static turbo_status encode_all(const turbo_tokenizer_vtbl *v, const void *tok, const char *text,
                               size_t len, FILE *out, double *seconds, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    *seconds = 0;
    for (size_t at = 0; at < len && !st;) {
        const char *end = memchr(text + at, 0xff, len - at);
        size_t k = end ? (size_t)(end - text) - at : len - at, n = 0;
        int32_t *ids = NULL;
        double t = now();
        st = turbod_encode_text(v, tok, text + at, k, false, false, &ids, &n, err);
        *seconds += now() - t;
        if (!st && fwrite(ids, sizeof *ids, n, out) != n) {
            snprintf(err->text, sizeof err->text, "cannot write");
            st = TURBO_EIO;
        }
        free(ids);
        at += k + 1;
    }
    return st;
}

static int encode(const turbo_tokenizer_vtbl *v, const void *tok, const char *in, const char *out)
{
    size_t len = 0;
    char *text = slurp(in, &len);
    turbo_err err = {{0}};
    double seconds = 0;
    FILE *f = text ? fopen(out, "wb") : NULL;
    bool ok = f && !encode_all(v, tok, text, len, f, &seconds, &err);
    if (f && fclose(f))
        ok = false;
    free(text);
    if (!ok) {
        fprintf(stderr, "encode: %s\n", err.text[0] ? err.text : in);
        return 1;
    }
    printf("%.9f\n", seconds);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    const char *paths = getenv("TURBO_PLUGIN_PATH");
    const turbo_tokenizer_vtbl *v = NULL;
    turbod_registry *r = NULL;
    turbo_err err = {{0}};
    char line[8400], in[4096], out[4096];
    void *tok = NULL;
    int rc = 0;
    if (argc != 2 || !paths || turbod_registry_open(paths, &r, &err) ||
        turbod_registry_tokenizer_for(r, argv[1], &v, &err) ||
        v->open(turbod_host_table(), argv[1], &tok, &err)) {
        fprintf(stderr, "encode: %s\n", err.text[0] ? err.text : "encode FOLDER");
        return 64;
    }
    while (!rc && fgets(line, sizeof line, stdin) && sscanf(line, "%4095s %4095s", in, out) == 2)
        rc = encode(v, tok, in, out);
    v->close(tok);
    turbod_registry_close(r);
    return rc;
}
