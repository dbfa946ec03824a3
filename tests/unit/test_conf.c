/* tests/unit/test_conf.c: the configuration: values, ranges, sources and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "conf/table.h"
#include "engine/service.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/turbo-conf-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char path[128];
    (void)state;
    snprintf(path, sizeof path, "%s/a.conf", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/link.conf", dir);
    unlink(path);
    return rmdir(dir);
}

static const char *write_conf(const char *text, size_t n)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/a.conf", dir);
    unlink(path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
    return path;
}

/* Loads a file with this text and flags; NULL with err on failure. */
static turbod_conf *load(const char *text, int argc, char **flags, turbo_status *st, turbo_err *err)
{
    char *argv[16] = {(char *)(void *)"turbod", (char *)(void *)"--conf"}, path[128];
    int n = 1;
    turbod_conf *c = NULL;
    if (text) {
        snprintf(path, sizeof path, "%s", write_conf(text, strlen(text)));
        argv[2] = path;
        n = 3;
    }
    for (int i = 0; i < argc; i++)
        argv[n++] = flags[i];
    *st = turbod_conf_load(n, argv, NULL, NULL, &c, err);
    return *st ? NULL : c;
}

static void refused(const char *text, const char *words)
{
    turbo_status st;
    turbo_err err = {{0}};
    turbod_conf *c = load(text, 0, NULL, &st, &err);
    if (c || !strstr(err.text, words))
        fail_msg("%.60s...: got \"%s\", wanted \"%s\"", text, c ? "taken" : err.text, words);
    assert_int_equal(st, TURBO_EINVAL);
}

static void test_defaults(void **state)
{
    turbo_status st;
    turbo_err err;
    (void)state;
    turbod_conf *c = load(NULL, 0, NULL, &st, &err);
    assert_non_null(c);
    assert_string_equal(c->host, "127.0.0.1");
    assert_int_equal(c->port, 23333);
    assert_int_equal(c->body_limit, 8u << 20);
    assert_true(c->allow_root);
    assert_false(c->allow_nonfinite);
    for (size_t i = 0; i < turbod_n_opts; i++)
        assert_int_equal(c->origins[i], TURBOD_FROM_DEFAULT);
    turbod_conf_free(c);
}

static void test_keys_are_unique(void **state)
{
    (void)state;
    for (size_t i = 0; i < turbod_n_opts; i++)
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(turbod_opts[i].key, turbod_opts[j].key);
}

static void test_file_values(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char want[128];
    (void)state;
    turbod_conf *c =
        load("model = \"m\"; // one\n# two\n/* three @include \"x\" */\n"
             "allow_root = false;\n"
             "server = { port = 0; body_limit = 4096; allowed_hosts = (\"a.b\", \"c\");\n"
             " allowed_origins = \"x,y\"; max_connections = 12L; };\n"
             "engine : { cache_max_entry_count = 0.25; threads = 2; isa = \"avx2\"; };\n",
             0, NULL, &st, &err);
    if (!c)
        fail_msg("%s", err.text);
    snprintf(want, sizeof want, "%s/m", dir);
    assert_string_equal(c->model, want); /* relative to the file */
    assert_false(c->allow_root);
    assert_int_equal(c->port, 0);
    assert_int_equal(c->body_limit, 4096);
    assert_string_equal(c->allowed_hosts, "a.b,c");
    assert_string_equal(c->allowed_origins, "x,y");
    assert_int_equal(c->max_connections, 12);
    assert_string_equal(c->cache_max_entry_count, "0.25");
    assert_string_equal(c->isa, "avx2");
    assert_int_equal(turbod_conf_origin(c, "port"), TURBOD_FROM_FILE);
    assert_int_equal(turbod_conf_origin(c, "host"), TURBOD_FROM_DEFAULT);
    turbod_conf_free(c);
}

static void test_order(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char flag[] = "--port", value[] = "4", eq[] = "--max-batch-size=5", no[] = "--no-allow-root";
    char *flags[] = {flag, value, eq, no};
    (void)state;
    setenv("TURBO_SERVER_PORT", "3", 1);
    setenv("TURBO_ENGINE_THREADS", "7", 1);
    setenv("TURBO_MODEL_NAME", "env", 1);
    turbod_conf *c = load("server = { port = 2; }; engine = { threads = 2; max_batch_size = 2; };",
                          4, flags, &st, &err);
    unsetenv("TURBO_SERVER_PORT");
    unsetenv("TURBO_ENGINE_THREADS");
    unsetenv("TURBO_MODEL_NAME");
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(c->port, 4);
    assert_int_equal(c->threads, 7);
    assert_int_equal(c->max_batch_size, 5);
    assert_string_equal(c->model_name, "env");
    assert_false(c->allow_root);
    assert_int_equal(turbod_conf_origin(c, "port"), TURBOD_FROM_FLAG);
    assert_int_equal(turbod_conf_origin(c, "threads"), TURBOD_FROM_ENV);
    turbod_conf_free(c);
}

/* A card has other defaults, each of which the user's word replaces. */
static void test_device_defaults(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    (void)state;
    turbod_conf *c = load("engine = { device = \"cuda:1\"; };", 0, NULL, &st, &err);
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(c->max_batch_size, 256);
    assert_int_equal(c->max_prefill_token_num, 2048);
    assert_int_equal(turbod_conf_origin(c, "max_batch_size"), TURBOD_FROM_DEFAULT);
    turbod_conf_free(c);
    c = load("engine = { device = \"cuda\"; max_batch_size = 300; };", 0, NULL, &st, &err);
    assert_non_null(c);
    assert_int_equal(c->max_batch_size, 300);
    assert_int_equal(c->max_prefill_token_num, 2048);
    turbod_conf_free(c);
    c = load("engine = { device = \"cuda\"; };"
             "models = ( { model = \"/a\"; }, { model = \"/b\"; device = \"cpu\"; } );",
             0, NULL, &st, &err);
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(c->models[0]->max_batch_size, 256);
    assert_int_equal(c->models[1]->max_batch_size, 64);
    assert_int_equal(c->models[1]->max_prefill_token_num, 256);
    turbod_conf_free(c);
}

static void test_refused_files(void **state)
{
    (void)state;
    refused("server = { prot = 1; };", "a.conf:1: unknown setting server.prot; did you mean port?");
    refused("\n\nmodl = \"x\";", "a.conf:3: unknown setting modl; did you mean model?");
    refused("dtype = \"f16\";", "unknown setting dtype; did you mean device_precision?");
    refused("engine = { max_model_len = 9; };", "engine.max_model_len; did you mean session_len?");
    refused("engine = { device_precision = \"fp16\"; };",
            "a.conf:1: device_precision is \"fp16\"; use auto, bf16, f16 or f32");
    refused("port = 1;", "port belongs into the group server");
    refused("server = { model = \"x\"; };", "model belongs to the top level");
    refused("server = 3;", "a group server = { ... } is needed");
    refused("server = { port = 1.5; };", "port is a number with a point; a whole number is needed");
    refused("server = { port = \"1\"; };", "port is a string; a whole number");
    refused("server = { port = 65536; };", "0 to 65535");
    refused("server = { port = -1; };", "0 to 65535");
    refused("server = { port = 99999999999; };", "port is 99999999999");
    refused("server = { port = 4294990629; };", "port is 4294990629"); /* 23333 + 2^32 */
    refused("server = { port = 0x100005B25; };", "port is 4294990629");
    refused("server = { port = 9999999999999999999; };", "more digits");
    refused("server = { port = true; };", "port is a truth value");
    refused("allow_root = 1;", "true or false is needed");
    refused("model = 5;", "a string in quotes");
    refused("server = { body_limit = \"1e3\"; };", "body_limit is 1e3");
    refused("server = { body_limit = \"2TiB\"; };", "body_limit is 2TiB");
    refused("log_level = \"inof\";", "log_level is \"inof\"; use error, warn, info or debug");
    refused("quantize = \"int3\";", "quantize is \"int3\"; use int8 or int4, or leave it out");
    refused("engine = { kv_dtype = \"int8\"; };",
            "kv_dtype is \"int8\"; use auto, f32, bf16 or f16; quantised ones are quant_policy");
    refused("engine = { cache_block_seq_len = 12; };", "a multiple of 8");
    refused("@include \"/etc/passwd\"\n", "a.conf:1: @include is not allowed");
    refused("model = \"a\\\"b\"; \t @include \"/etc/passwd\"\n", "@include is not allowed");
    refused("model = \"x\"\nmodel = \"y\";", "a.conf:2");
    refused("model = ", "a setting reads");
    refused("model = \"a\nb\";", "control character");
}

static void test_refused_flags(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char bad[] = "--prot=1", lone[] = "--port", no[] = "--no-port", word[] = "hello";
    char range[] = "--port=x", neg[] = "--no-allow-root=1";
    const struct {
        char *flag;
        const char *words;
    } rows[] = {{bad, "did you mean --port?"},     {lone, "--port needs a value"},
                {no, "unknown flag --no-port"},    {word, "not expected here"},
                {range, "flag --port: port is x"}, {neg, "takes no value"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *flags[] = {rows[i].flag};
        assert_null(load(NULL, 1, flags, &st, &err));
        assert_int_equal(st, TURBOD_EUSAGE);
        if (!strstr(err.text, rows[i].words))
            fail_msg("%s: %s", rows[i].flag, err.text);
    }
    setenv("TURBO_SERVER_PROT", "1", 1);
    assert_null(load(NULL, 0, NULL, &st, &err));
    unsetenv("TURBO_SERVER_PROT");
    assert_non_null(strstr(err.text, "did you mean TURBO_SERVER_PORT?"));
}

static void test_file_itself(void **state)
{
    turbo_err err = {{0}};
    turbod_conf *c = NULL;
    char link[128], flag[] = "--conf", prog[] = "turbod", absent[] = "/nonexistent/a.conf";
    char *argv[] = {prog, flag, link};
    (void)state;
    const char *path = write_conf("model = \"m\";\0x", 14);
    snprintf(link, sizeof link, "%s", path);
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "NUL"));
    path = write_conf("", 0);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "writable by everyone"));
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_OK);
    turbod_conf_free(c);
    snprintf(link, sizeof link, "%s/link.conf", dir);
    assert_int_equal(symlink(path, link), 0);
    assert_int_not_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_OK);
    assert_non_null(strstr(err.text, "symbolic link"));
    argv[2] = absent;
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_ENOENT);
    argv[2] = dir;
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "regular"));
    char *big = malloc((1u << 20) + 1);
    assert_non_null(big);
    memset(big, ' ', (1u << 20) + 1);
    snprintf(link, sizeof link, "%s/a.conf", dir);
    argv[2] = link;
    write_conf(big, 1u << 20);
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_OK);
    turbod_conf_free(c);
    write_conf(big, (1u << 20) + 1);
    assert_int_equal(turbod_conf_load(3, argv, NULL, NULL, &c, &err), TURBO_EINVAL);
    free(big);
}

static void test_deep_nesting(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char *text = malloc(200001);
    (void)state;
    assert_non_null(text);
    for (int i = 0; i < 100000; i++) {
        text[2 * i] = '(';
        text[2 * i + 1] = '(';
    }
    text[200000] = '\0';
    memcpy(text, "model = ", 8);
    assert_null(load(text, 0, NULL, &st, &err));
    assert_int_equal(st, TURBO_EINVAL);
    free(text);
}

static void test_sizes(void **state)
{
    const struct {
        const char *text;
        uint64_t want; /* 0: refused */
    } rows[] = {
        {"4096", 4096},
        {"8GiB", 8ull << 30},
        {"512 MiB", 512u << 20},
        {"1.5GB", 1500000000},
        {"0.5KiB", 512},
        {"3TiB", 3ull << 40},
        {"12B", 12},
        {"", 0},
        {"-1", 0},
        {"8gib", 0},
        {"8 GiB ", 0},
        {"1.5", 0},
        {"1.", 0},
        {".5GiB", 0},
        {"0x10", 0},
        {"18446744073709551616", 0},
        {"18446744073709551615", UINT64_MAX},
        {"17179869184GiB", 0},
        {"1.1234567GiB", 0},
        {" 1", 0},
        {"nan", 0},
        {"1e3", 0},
    };
    uint64_t v;
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        v = 0;
        bool ok = turbod_conf_size(rows[i].text, &v);
        if (ok != (rows[i].want != 0) || (ok && v != rows[i].want))
            fail_msg("\"%s\": %d %llu", rows[i].text, ok, (unsigned long long)v);
    }
}

/* What -T prints is a conf file with the same values. */
static void test_print_reads_back(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char *text = NULL, *again = NULL;
    size_t n;
    (void)state;
    turbod_conf *c =
        load("model = \"/a \\\"b\\\\c\"; server = { port = 7; body_limit = \"3MiB\"; };", 0, NULL,
             &st, &err);
    assert_non_null(c);
    FILE *f = open_memstream(&text, &n);
    turbod_conf_print(c, f);
    fclose(f);
    assert_non_null(strstr(text, "port = 7; # file "));
    assert_non_null(strstr(text, "host = \"127.0.0.1\"; # default"));
    turbod_conf *d = load(text, 0, NULL, &st, &err);
    if (!d)
        fail_msg("%s", err.text);
    f = open_memstream(&again, &n);
    for (size_t i = 0; i < turbod_n_opts; i++) {
        char a[64], b[64];
        /* An empty path stays empty; others were absolute. */
        assert_string_equal(turbod_opt_text(c, &turbod_opts[i], a),
                            turbod_opt_text(d, &turbod_opts[i], b));
    }
    fclose(f);
    free(again);
    free(text);
    turbod_conf_free(c);
    turbod_conf_free(d);
}

static void test_key_is_masked(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char *text = NULL;
    size_t n;
    (void)state;
    turbod_conf *c = load("server = { api_keys = \"sk-planted-secret\"; };", 0, NULL, &st, &err);
    assert_non_null(c);
    FILE *f = open_memstream(&text, &n);
    turbod_conf_print(c, f);
    fclose(f);
    assert_null(strstr(text, "planted"));
    free(text);
    turbod_conf_free(c);
}

static void test_prescan(void **state)
{
    turbo_err err;
    char *out;
    static const char in[] =
        "a = 1234567890; b = 123; c = \"9999999999\"; d = 0xFFFFFFFF; # 9999999999\n"
        "e = 5000000000L; f = 1.5e10; g_12345678901 = -2147483649;";
    (void)state;
    assert_int_equal(turbod_conf_prescan(in, sizeof in - 1, "x", &out, &err), TURBO_OK);
    assert_string_equal(
        out, "a = 1234567890L; b = 123; c = \"9999999999\"; d = 0xFFFFFFFFL; # 9999999999\n"
             "e = 5000000000L; f = 1.5e10; g_12345678901 = -2147483649L;");
    free(out);
}

static void test_nearest(void **state)
{
    (void)state;
    assert_string_equal(turbod_opt_nearest("server", "prot"), "port");
    assert_string_equal(turbod_opt_nearest(NULL, "cache_max_entry_cuont"), "cache_max_entry_count");
    assert_null(turbod_opt_nearest(NULL, "zzzzzzzz"));
}

/* ---- several models ------------------------------------------------------------------------------------ */

static void test_models(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char want[128], *flags[] = {(char *)(void *)"--threads", (char *)(void *)"3",
                                (char *)(void *)"--max-batch-size=7"};
    (void)state;
    turbod_conf *c =
        load("engine = { session_len = 100; queue_size = 9; };\n"
             "models = ( { model = \"x\"; model_name = \"one\"; kv_share = 2.5; },\n"
             "  { model = \"/y\"; session_len = 200; threads = 5; quant_policy = 8; } );",
             3, flags, &st, &err);
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(c->n_models, 2);
    const turbod_conf *a = c->models[0], *b = c->models[1];
    snprintf(want, sizeof want, "%s/x", dir); /* relative to the file */
    assert_string_equal(a->model, want);
    assert_string_equal(a->model_name, "one");
    assert_string_equal(b->model, "/y");
    assert_string_equal(b->model_name, "");
    assert_true(a->kv_share == 2.5 && b->kv_share == 1);
    assert_int_equal(a->session_len, 100); /* the rest of the file */
    assert_int_equal(b->session_len, 200);
    assert_int_equal(a->threads, 3); /* a flag is a default of all */
    assert_int_equal(b->threads, 5);
    assert_int_equal(a->max_batch_size, 7);
    assert_int_equal(b->queue_size, 9);
    assert_int_equal(a->port, 23333);
    assert_int_equal(turbod_conf_origin(a, "threads"), TURBOD_FROM_FLAG);
    assert_int_equal(turbod_conf_origin(b, "threads"), TURBOD_FROM_FILE);
    assert_int_equal(turbod_conf_origin(b, "kv_share"), TURBOD_FROM_DEFAULT);
    turbod_conf_free(c);
}

static void test_refused_models(void **state)
{
    static const char *const rows[][2] = {
        {"models = 3;", "a.conf:1: models is a whole number"},
        {"models = ();", "a.conf:1: models is a list of none"},
        {"models = { model = \"a\"; };", "models is a group"},
        {"models = (\n3);", "models[0] is a whole number"},
        {"models = (\n{ model_name = \"a\"; });", "a.conf:2: models[0] names no model"},
        {"models = ( {\nmodel = \"a\"; sesion_len = 3; });",
         "a.conf:2: unknown setting models.sesion_len; did you mean session_len?"},
        {"models = ( { model = \"a\";\nport = 3; });", "a.conf:2: port is the same for all models"},
        {"models = ( { model = \"a\"; log_level = \"info\"; });", "at the top level"},
        {"models = ( { model = \"a\"; engine = { threads = 1; }; });", "has no groups"},
        {"models = ( { model = \"a\"; threads = \"x\"; });", "threads is a string"},
        {"models = ( { model = \"a\"; kv_share = 0; });", "models[0]: kv_share is 0"},
        {"models = ( { model = \"a\"; }, { model = \"b\"; cache_block_seq_len = 12; });",
         "models[1]: cache_block_seq_len is 12"},
        {"engine = { kv_share = -1; };", "kv_share is -1"},
        {"model = \"a\"; models = ( { model = \"b\"; });", "both model and models are given"},
        {"models = ( { model = \"b\"; }); model_name = \"c\";", "both model_name and models"},
        {"modles = ( { model = \"b\"; });", "did you mean model"},
    };
    turbo_status st;
    turbo_err err = {{0}};
    char *flags[] = {(char *)(void *)"--model=x"};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        refused(rows[i][0], rows[i][1]);
    assert_null(load("models = ( { model = \"b\"; });", 1, flags, &st, &err));
    assert_int_equal(st, TURBOD_EUSAGE);
    assert_non_null(strstr(err.text, "drop the flag"));
    setenv("TURBO_MODEL_NAME", "x", 1);
    assert_null(load("models = ( { model = \"b\"; });", 0, NULL, &st, &err));
    unsetenv("TURBO_MODEL_NAME");
    assert_non_null(strstr(err.text, "environment TURBO_MODEL_NAME"));
}

static void test_models_read_back(void **state)
{
    turbo_status st;
    turbo_err err = {{0}};
    char *text = NULL;
    size_t n;
    (void)state;
    turbod_conf *c = load("models = ( { model = \"/a\"; kv_share = 0.25; }, { model = \"/b\"; "
                          "cache_max_entry_count = \"3MiB\"; } );",
                          0, NULL, &st, &err);
    assert_non_null(c);
    FILE *f = open_memstream(&text, &n);
    turbod_conf_print(c, f);
    fclose(f);
    turbod_conf *d = load(text, 0, NULL, &st, &err);
    if (!d)
        fail_msg("%s", err.text);
    assert_int_equal(d->n_models, 2);
    for (size_t m = 0; m < 2; m++)
        for (size_t i = 0; i < turbod_n_opts; i++) {
            char a[64], b[64];
            assert_string_equal(turbod_opt_text(c->models[m], &turbod_opts[i], a),
                                turbod_opt_text(d->models[m], &turbod_opts[i], b));
        }
    free(text);
    turbod_conf_free(c);
    turbod_conf_free(d);
}

int main(void)
{
    unsetenv("TURBO_PLUGIN_PATH"); /* the one option that the test environment sets */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),         cmocka_unit_test(test_keys_are_unique),
        cmocka_unit_test(test_file_values),      cmocka_unit_test(test_order),
        cmocka_unit_test(test_device_defaults),  cmocka_unit_test(test_refused_files),
        cmocka_unit_test(test_refused_flags),    cmocka_unit_test(test_file_itself),
        cmocka_unit_test(test_deep_nesting),     cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_print_reads_back), cmocka_unit_test(test_key_is_masked),
        cmocka_unit_test(test_prescan),          cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_models),           cmocka_unit_test(test_refused_models),
        cmocka_unit_test(test_models_read_back),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
