/* tests/bench/encode.c: one tokenizer, loaded once, encodes files at a script's word (tests/bench/tokenizer.py): each
 * line of standard input "FILE OUT" is answered with the seconds that encoding took; the ids go to OUT as 32-bit numbers.
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

static int encode(const turbo_tokenizer_vtbl *v, const void *tok, const char *in, const char *out)
{
    size_t len = 0, n = 0;
    char *text = slurp(in, &len);
    int32_t *ids = NULL;
    turbo_err err = {{0}};
    if (!text)
        return 1;
    double t = now();
    turbo_status st = turbod_encode_text(v, tok, text, len, false, false, &ids, &n, &err);
    t = now() - t;
    FILE *f = st ? NULL : fopen(out, "wb");
    bool ok = f && fwrite(ids, sizeof *ids, n, f) == n;
    if (f && fclose(f))
        ok = false;
    free(text);
    free(ids);
    if (!ok) {
        fprintf(stderr, "encode: %s\n", st ? err.text : out);
        return 1;
    }
    printf("%.9f\n", t);
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
