/* tests/unit/test_loader.c: the registry and the conformance check, in process. What the loader
 * refuses is judged file by file in tests/abi/refuse.sh; here are the calls that programs make. The
 * plugins are those of the build tree. Environment: top_builddir, srcdir. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/check.h"
#include "plugin/host.h"
#include "plugin/registry.h"
#include "util/log.h"
#include "weights/config.h"

static char folder[64];
static const char *const names[] = {"internlm2", "samp-std", "tok-spm"};

static const char *env(const char *name)
{
    const char *s = getenv(name);
    return s && *s ? s : ".";
}

static void built(size_t i, char *to, size_t cap, bool file)
{
    snprintf(to, cap, "%s/plugins/%s/.libs%s%s%s", env("top_builddir"), names[i], file ? "/" : "",
             file ? names[i] : "", file ? ".so" : "");
}

/* "dir:dir:dir" of the build tree. */
static turbod_registry *open_built(void)
{
    char paths[16384] = "", one[4096];
    turbod_registry *r = NULL;
    turbo_err err = {{0}};
    for (size_t i = 0; i < 3; i++) {
        built(i, one, sizeof one, false);
        size_t n = strlen(paths);
        snprintf(paths + n, sizeof paths - n, "%s%s", n ? ":" : "", one);
    }
    if (turbod_registry_open(paths, &r, &err))
        fail_msg("%s", err.text);
    return r;
}

static turbo_config *config_of(const char *text)
{
    turbo_config *c = NULL;
    turbo_err err;
    if (turbod_config_parse(text, strlen(text), "config.json", &c, &err))
        fail_msg("%s", err.text);
    return c;
}

static void test_rows(void **state)
{
    (void)state;
    turbod_registry *r = open_built();
    assert_int_equal(turbod_registry_count(r), 3);
    for (size_t i = 0; i < 3; i++) {
        turbod_plugin_row row;
        turbod_registry_row(r, i, &row);
        if (row.refused)
            fail_msg("%s", row.refused);
        assert_string_equal(row.id, names[i]);
        assert_true(row.version[0] && row.license[0] && row.offers[0]);
        assert_non_null(strstr(row.path, ".so"));
    }
    turbod_registry_close(r);
    turbod_registry_close(NULL);
}

static void test_choice(void **state)
{
    (void)state;
    turbod_registry *r = open_built();
    turbo_err err = {{0}};
    const turbo_model_vtbl *m = NULL;
    const turbo_tokenizer_vtbl *t = NULL;
    turbo_config *c = config_of("{\"architectures\":[\"InternLM2ForCausalLM\"]}");
    assert_int_equal(turbod_registry_model_for(r, c, &m, &err), TURBO_OK);
    assert_string_equal(m->id, "internlm2");
    turbod_config_close(c);
    c = config_of("{\"architectures\":[\"NobodyForCausalLM\"],\"model_type\":\"nobody\"}");
    assert_int_equal(turbod_registry_model_for(r, c, &m, &err), TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "NobodyForCausalLM"));
    assert_non_null(strstr(err.text, "nobody"));
    assert_non_null(strstr(err.text, "internlm2"));
    turbod_config_close(c);
    c = config_of("{\"architectures\":[[]],\"model_type\":7}");
    assert_int_equal(turbod_registry_model_for(r, c, &m, &err), TURBO_EUNSUPPORTED);
    turbod_config_close(c);
    assert_int_equal(turbod_registry_tokenizer_for(r, folder, &t, &err), TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, folder));
    const turbo_sampler_vtbl *s = turbod_registry_sampler(r, "std");
    assert_non_null(s);
    assert_int_equal(s->size, sizeof *s);
    assert_null(turbod_registry_sampler(r, "nobody"));
    turbod_registry_close(r);
}

static void test_folders(void **state)
{
    (void)state;
    turbod_registry *r = NULL;
    turbo_err err = {{0}};
    assert_int_equal(turbod_registry_open("", &r, &err), TURBO_OK);
    assert_int_equal(turbod_registry_count(r), 0);
    const turbo_model_vtbl *m;
    turbo_config *c = config_of("{\"model_type\":\"mamba\"}");
    assert_int_equal(turbod_registry_model_for(r, c, &m, &err), TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "loaded models: none"));
    turbod_config_close(c);
    c = config_of("{}");
    assert_int_equal(turbod_registry_model_for(r, c, &m, &err), TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "neither architectures nor model_type"));
    turbod_config_close(c);
    turbod_registry_close(r);
    assert_int_equal(turbod_registry_open("::", &r, &err), TURBO_OK);
    turbod_registry_close(r);
    assert_int_equal(turbod_registry_open("/nonexistent/folder", &r, &err), TURBO_ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/folder"));
    assert_int_equal(turbod_registry_open("/dev/null", &r, &err), TURBO_ENOENT);
    char *long_path = calloc(1, 6000);
    assert_non_null(long_path);
    memset(long_path, 'x', 5999);
    assert_int_equal(turbod_registry_open(long_path, &r, &err), TURBO_ELIMIT);
    free(long_path);
    assert_int_equal(chmod(folder, 0777), 0);
    assert_int_equal(turbod_registry_open(folder, &r, &err), TURBO_EABI);
    assert_non_null(strstr(err.text, "0777"));
    assert_int_equal(chmod(folder, 0700), 0);
    assert_int_equal(turbod_registry_open(folder, &r, &err), TURBO_OK);
    turbod_registry_close(r);
}

/* The shipped plugins pass what `turbo plugin check` asks of everybody. */
static void test_check(void **state)
{
    (void)state;
    turbo_err err = {{0}};
    char path[4096];
    FILE *sink = tmpfile();
    assert_non_null(sink);
    for (size_t i = 0; i < 3; i++) {
        built(i, path, sizeof path, true);
        if (turbod_plugin_check(path, sink, &err))
            fail_msg("%s: %s", names[i], err.text);
    }
    assert_int_equal(turbod_plugin_check("/nonexistent.so", sink, &err), TURBO_EABI);
    assert_true(strlen(err.text) > 0);
    fclose(sink);
}

static void new_of(const char *kind, const char *const *made, size_t n, const char *data)
{
    char dir[96], path[256], *text = malloc(65536);
    turbo_err err = {{0}};
    assert_non_null(text);
    snprintf(dir, sizeof dir, "%s/project", folder);
    if (turbod_plugin_new("my-plugin", kind, dir, data, &err))
        fail_msg("%s", err.text);
    assert_int_not_equal(turbod_plugin_new("my-plugin", kind, dir, data, &err), TURBO_OK);
    assert_non_null(strstr(err.text, "exists"));
    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, made[i]);
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        text[fread(text, 1, 65535, f)] = '\0';
        fclose(f);
        assert_non_null(strstr(text, "my-plugin"));
        assert_null(strstr(text, "@NAME@"));
        assert_null(strstr(text, "@CLASS@"));
        if (!strcmp(kind, "model") && strcmp(made[i], "Makefile"))
            assert_non_null(strstr(text, "MyPluginForCausalLM"));
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0); /* nothing else was written */
    free(text);
}

static void test_new(void **state)
{
    static const char *const made[] = {"Makefile", "my-plugin.c", "README.md", "checkpoint.py"};
    (void)state;
    char dir[96], data[4096];
    turbo_err err = {{0}};
    snprintf(dir, sizeof dir, "%s/project", folder);
    snprintf(data, sizeof data, "%s/scripts", env("srcdir"));
    new_of("sampler", made, 3, data);
    new_of("model", made, 4, data);
    assert_int_equal(turbod_plugin_new("x", "../chat", dir, data, &err), TURBO_EINVAL);
    static const char *const bad[] = {"",     "Upper", "9lives",
                                      "../x", "a b",   "abcdefghijklmnopqrstuvwxyz0123456"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(turbod_plugin_new(bad[i], "model", dir, data, &err), TURBO_EINVAL);
    assert_int_not_equal(turbod_plugin_new("x", "model", dir, "/nonexistent", &err), TURBO_OK);
    rmdir(dir);
}

static int make_folder(void **state)
{
    (void)state;
    turbod_log_level(TURBO_LOG_ERROR);
    snprintf(folder, sizeof folder, "/tmp/turbo-load-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),  cmocka_unit_test(test_choice), cmocka_unit_test(test_folders),
        cmocka_unit_test(test_check), cmocka_unit_test(test_new),
    };
    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
