/* core/plugin/check_model.c: conformance tests of model and tokenizer tables. Each runs in a child
 * process of `turbo plugin check`, so a crash of the plugin is a finding, not the end. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin/check_rig.h"
#include "plugin/check_run.h"
#include "plugin/host.h"
#include "util/err.h"
#include "weights/config.h"

#define MAX_TENSORS 20000

/* What most decoders read, in small numbers. */
const char check_generic[] =
    "{\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"vocab_size\":320,"
    "\"max_position_embeddings\":256,\"rms_norm_eps\":1e-5,\"layer_norm_epsilon\":1e-5,"
    "\"rope_theta\":10000,\"hidden_act\":\"silu\",\"bias\":false,\"attention_bias\":false,"
    "\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\",\"bos_token_id\":1,"
    "\"eos_token_id\":2,\"pad_token_id\":2}";

static const char *const hostile[] = {
    "{}",
    "[]",
    "null",
    "\"text\"",
    "{\"architectures\":5,\"model_type\":{}}",
    "{\"architectures\":[],\"model_type\":\"\"}",
    "{\"architectures\":[[[]],null,7],\"model_type\":[\"x\"]}",
    "{\"architectures\":[\"\"],\"hidden_size\":0,\"num_attention_heads\":0,\"vocab_size\":0,"
    "\"num_hidden_layers\":0}",
    "{\"hidden_size\":-64,\"num_attention_heads\":-4,\"vocab_size\":-1,\"num_hidden_layers\":-2}",
    "{\"hidden_size\":1e300,\"num_attention_heads\":1e18,\"vocab_size\":9007199254740991,"
    "\"num_hidden_layers\":2147483647,\"intermediate_size\":4294967296}",
    "{\"hidden_size\":64.5,\"num_attention_heads\":3,\"num_key_value_heads\":5,\"vocab_size\":1.5}",
    "{\"hidden_size\":\"64\",\"vocab_size\":[],\"rope_scaling\":[],\"eos_token_id\":{},"
    "\"torch_dtype\":7,\"rope_theta\":\"x\"}",
    "{\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":320,"
    "\"max_position_embeddings\":256,\"rms_norm_eps\":-1,\"rope_theta\":-5,"
    "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":-1e30},\"eos_token_id\":[-1,99999]}",
    /* each number could be, but not beside the others */
    "{\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":3,\"vocab_size\":320}",
    "{\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"vocab_size\":320,\"bos_token_id\":320}",
    "{\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"vocab_size\":320,\"eos_token_id\":[2,320]}",
    /* good numbers under names that nobody has */
    "{\"architectures\":[\"FrobnicatorForCausalLM\"],\"model_type\":\"frobnicator\","
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":320}",
    "{\"architectures\":[\"ForCausalLM\"],\"model_type\":\"model\",\"hidden_size\":64}",
};

static int failed(turbo_err *why, turbo_err *said, const char *text, const char *config)
{
    said->text[sizeof said->text - 1] = '\0';
    turbod_err(why, 0, "%s (config %.60s%s%.80s)", text, config, *said->text ? ": " : "",
               said->text);
    return CHECK_FAILED;
}

static const char *bad_info(const turbo_model_info *m)
{
    if (m->n_layers < 1 || m->n_heads < 1 || m->n_kv < 1 || m->head_dim < 1 || m->embed_dim < 1 ||
        m->mlp_dim < 1 || m->vocab < 1 || m->max_position < 1)
        return "describe succeeds with a dimension below 1";
    if (m->n_heads % m->n_kv)
        return "describe succeeds with n_kv that does not divide n_heads";
    if (m->n_eos < 0 || m->n_eos > 16)
        return "describe succeeds with n_eos outside 0..16";
    for (int32_t i = 0; i < m->n_eos; i++)
        if (m->eos[i] < 0 || m->eos[i] >= m->vocab)
            return "describe succeeds with an eos id outside the vocabulary";
    if (m->bos < -1 || m->bos >= m->vocab)
        return "describe succeeds with a bos id outside the vocabulary";
    if (!memchr(m->arch, 0, sizeof m->arch) || !memchr(m->chat, 0, sizeof m->chat))
        return "arch or chat is not NUL-terminated";
    return NULL;
}

static int probe_one(const turbo_model_vtbl *v, const char *text, turbo_err *why)
{
    turbo_config *c = NULL;
    turbo_err said = {{0}};
    int result = CHECK_OK;
    if (turbod_config_parse(text, strlen(text), "config.json", &c, &said))
        return failed(why, &said, "this test's own JSON does not parse", text);
    int32_t score = v->probe(turbod_host_table(), c);
    turbo_model_info info = {.size = sizeof info};
    said = (turbo_err){{0}};
    turbo_status st = v->describe(turbod_host_table(), c, &info, &said);
    if (score != 0)
        result =
            failed(why, &said, "probe claims a config whose architecture it cannot know", text);
    else if (st > 0)
        result = failed(why, &said, "describe returns a positive status", text);
    else if (st && !said.text[0])
        result = failed(why, &said, "describe fails without an error text", text);
    else if (!st && bad_info(&info))
        result = failed(why, &said, bad_info(&info), text);
    turbod_config_close(c);
    return result;
}

static int model_hostile(const void *vtbl, turbo_err *why)
{
    const turbo_model_vtbl *v = vtbl;
    int result = CHECK_OK;
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0] && !result; i++)
        result = probe_one(v, hostile[i], why);
    return result;
}

typedef struct tensors {
    const turbo_model_info *info;
    size_t n, stop_at;
    uint64_t hash; /* of all names and dims, in order */
    bool has_table; /* some tensor is [V,E] */
    const char *problem;
} tensors;

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const unsigned char *)p)[i]) * UINT64_C(0x100000001b3);
    return h;
}

static turbo_status take(void *ctx, const turbo_tensor_spec *s)
{
    tensors *t = ctx;
    if (t->stop_at && t->n == t->stop_at)
        t->problem = "expect goes on after emit returned an error";
    if (!s || !s->name || !*s->name || s->ndim < 1 || s->ndim > 4 || t->n >= MAX_TENSORS) {
        t->problem = "expect emits a tensor without a name, with ndim outside 1..4, or too many";
        return TURBO_EINVAL;
    }
    for (int32_t d = 0; d < s->ndim; d++)
        if (s->dims[d] < 1)
            t->problem = "expect emits a dimension below 1";
    if (s->ndim == 2 && s->dims[0] == t->info->vocab && s->dims[1] == t->info->embed_dim)
        t->has_table = true;
    t->hash = fnv(t->hash, s->name, strlen(s->name) + 1);
    t->hash = fnv(t->hash, s->dims, (size_t)s->ndim * sizeof s->dims[0]);
    t->n++;
    return t->stop_at && t->n == t->stop_at ? TURBO_ECANCELLED : TURBO_OK;
}

static int model_expect(const void *vtbl, turbo_err *why)
{
    const turbo_model_vtbl *v = vtbl;
    const turbo_host *h = turbod_host_table();
    turbo_config *c = NULL;
    turbo_err said = {{0}};
    turbo_model_info info = {.size = sizeof info};
    int result = CHECK_OK;
    if (turbod_config_parse(check_generic, strlen(check_generic), "config.json", &c, &said))
        return failed(why, &said, "this test's own JSON does not parse", check_generic);
    if (v->describe(h, c, &info, &said)) {
        turbod_err(why, 0, "needs more than the generic config: %.160s", said.text);
        turbod_config_close(c);
        return CHECK_SKIPPED;
    }
    tensors a = {.info = &info}, b = {.info = &info}, cut = {.info = &info, .stop_at = 1};
    turbo_status st = v->expect(h, c, take, &a, &said);
    if (!st)
        st = v->expect(h, c, take, &b, &said);
    turbo_status st_cut = v->expect(h, c, take, &cut, &said);
    if (a.problem || cut.problem) {
        result = failed(why, &said, a.problem ? a.problem : cut.problem, "generic");
    } else if (st) {
        result = failed(why, &said, "expect fails where describe succeeds", "generic");
    } else if (!a.n && !b.n) { /* a model without weights: nothing that could agree */
        turbod_err(why, TURBO_OK, "expect names no tensor");
        result = CHECK_SKIPPED;
    } else if (a.n != b.n || a.hash != b.hash) {
        result = failed(why, &said, "two calls of expect differ", "generic");
    } else if (!a.has_table) {
        result =
            failed(why, &said, "no tensor has the shape [vocab, embed_dim] of describe", "generic");
    } else if (!st_cut) {
        result = failed(why, &said, "expect succeeds although emit returned an error", "generic");
    }
    turbod_config_close(c);
    return result;
}

static int model_workspace(const void *vtbl, turbo_err *why)
{
    const turbo_model_vtbl *v = vtbl;
    static const int32_t sizes[] = {1, 2, 3, 8, 64, 513, 4096};
    const size_t n = sizeof sizes / sizeof sizes[0];
    turbo_model_info m = {.size = sizeof m,
                          .n_layers = 2,
                          .n_heads = 4,
                          .n_kv = 2,
                          .head_dim = 16,
                          .embed_dim = 64,
                          .mlp_dim = 128,
                          .vocab = 320,
                          .max_position = 8192,
                          .bos = 1};
    for (int32_t act = 2; act <= 4; act += 2)
        for (size_t t = 0; t < n; t++)
            for (size_t r = 0; r < n; r++) {
                uint64_t here = v->workspace(&m, sizes[t], sizes[r], act);
                if (here != v->workspace(&m, sizes[t], sizes[r], act) || here > UINT64_C(1) << 40 ||
                    (t && here < v->workspace(&m, sizes[t - 1], sizes[r], act)) ||
                    (r && here < v->workspace(&m, sizes[t], sizes[r - 1], act))) {
                    turbod_err(why, 0,
                               "workspace(T=%d, R=%d, %d bytes) = %llu shrinks, varies or is "
                               "absurd",
                               sizes[t], sizes[r], act, (unsigned long long)here);
                    return CHECK_FAILED;
                }
            }
    return CHECK_OK;
}

static int model_close_null(const void *vtbl, turbo_err *why)
{
    (void)why;
    ((const turbo_model_vtbl *)vtbl)->close(NULL);
    return CHECK_OK;
}

const check_test check_model_tests[] = {
    {"probe and describe survive hostile configs", model_hostile},
    {"describe and expect agree", model_expect},
    {"workspace grows with T and R", model_workspace},
    {"close(NULL)", model_close_null},
    {NULL, NULL},
};

static int tokenizer_empty(const void *vtbl, turbo_err *why)
{
    const turbo_tokenizer_vtbl *v = vtbl;
    const turbo_host *h = turbod_host_table();
    char folder[] = "/tmp/turbo-check-XXXXXX";
    turbo_err said = {{0}};
    void *tok = NULL;
    int result = CHECK_OK;
    if (!mkdtemp(folder)) {
        turbod_err(why, 0, "cannot make a folder in /tmp");
        return CHECK_SKIPPED;
    }
    if (v->probe(h, folder) != 0)
        result = failed(why, &said, "probe claims an empty folder", folder);
    else if (!v->open(h, folder, &tok, &said))
        result = failed(why, &said, "open succeeds on an empty folder", folder);
    else if (!said.text[0])
        result = failed(why, &said, "open fails without an error text", folder);
    rmdir(folder);
    if (!result && v->probe(h, folder) != 0)
        result = failed(why, &said, "probe claims a folder that does not exist", folder);
    return result;
}

const check_test check_tokenizer_tests[] = {
    {"probe and open refuse an empty folder", tokenizer_empty},
    {NULL, NULL},
};
