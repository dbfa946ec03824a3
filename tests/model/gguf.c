/* tests/model/gguf.c: two models compared: `gguf TOLERANCE A B [exact]`, each a folder or a GGUF file. A tolerance
 * of 0 asks for the same bits. exact: quantised matrices are multiplied as fp32. Prints the largest difference of
 * logits and the largest logit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

enum { TOKENS = 24 };

static bool logits_of(const turbod_registry *r, const char *path, bool exact, float **out,
                      size_t *n, turbo_err *err)
{
    turbo_config *c = NULL;
    const turbo_model_vtbl *v = NULL;
    runner m = {0};
    const runner_opts o = {
        .threads = 2, .kv_dtype = TURBO_F32, .max_tokens = 64, .registry = r, .exact = exact};
    int32_t ids[TOKENS];
    turbo_status st = turbod_config_open(path, &c, err);
    if (!st)
        st = turbod_registry_model_for(r, c, &v, err);
    turbod_config_close(c);
    if (!st)
        st = runner_open(&m, v, path, &o, err);
    if (st)
        return false; /* the process ends: nothing is worth freeing */
    *n = (size_t)TOKENS * (size_t)m.info.vocab;
    *out = calloc(*n, sizeof **out);
    for (int32_t i = 0; i < TOKENS; i++)
        ids[i] = 1 + (37 * i) % (m.info.vocab - 1);
    st = *out ? runner_step(&m, ids, TOKENS, TOKENS, TOKENS, *out, err) : TURBO_ENOMEM;
    runner_close(&m);
    return !st;
}

int main(int argc, char **argv)
{
    turbod_registry *r = NULL;
    turbo_err err = {{0}};
    float *a = NULL, *b = NULL;
    size_t n = 0, k = 0;
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    if (argc != 4 && !(argc == 5 && !strcmp(argv[4], "exact")))
        return 64;
    bool exact = argc == 5;
    double tolerance = strtod(argv[1], NULL), worst = 0, most = 0;
    if (turbod_registry_open(plugins ? plugins : "", &r, &err) ||
        !logits_of(r, argv[2], exact, &a, &n, &err) ||
        !logits_of(r, argv[3], exact, &b, &k, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    bool equal = n == k && !memcmp(a, b, n * sizeof *a);
    for (size_t i = 0; i < n && n == k; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        worst = d <= worst ? worst : d; /* NaN counts */
        most = fmax(most, fabs((double)a[i]));
    }
    printf("%zu logits, largest %.3g, largest difference %.3g\n", n, most, worst);
    free(a);
    free(b);
    turbod_registry_close(r);
    return n && n == k && most > 0 && (tolerance > 0 ? worst <= tolerance : equal) ? 0 : 1;
}
