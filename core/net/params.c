/* core/net/params.c: the body of a generation request to checked parameters. Workers.
 *
 * One table names every field there is an answer for: honoured, or refused with the reason. What is
 * not in it is unknown and leads to a warning, or to 400 in strict mode. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "net/gen.h"
#include "net/lists.h"
#include "util/checked.h"
#include "util/json.h"

typedef turbod_params_ctx ctx;

struct field {
    const char *name;
    int kinds; /* FOR_... */
    bool (*read)(ctx *c, const turbod_field *f, const cJSON *v);
    size_t at; /* in turbod_params */
    double lo, hi;
};

bool turbod_params_bad(ctx *c, const char *field, const cJSON *v, const char *expected)
{
    char shown[32];
    turbod_reply_error(c->x, 400, "invalid_value", field, "%s is %s; give %s", field,
                       turbod_json_show(v, shown), expected);
    return false;
}

/* ---- readers ------------------------------------------------------------------------------------------- */

static bool read_float(ctx *c, const turbod_field *f, const cJSON *v)
{
    double d;
    float value;
    char shown[32];
    if (!turbod_json_num(v, f->lo, f->hi, &d)) {
        turbod_reply_error(c->x, 400, "invalid_value", f->name, "%s is %s; give a number from %g to %g",
                           f->name, turbod_json_show(v, shown), f->lo, f->hi);
        return false;
    }
    value = (float)d;
    memcpy((char *)c->p + f->at, &value, sizeof value);
    return true;
}

static bool read_long(ctx *c, const turbod_field *f, const cJSON *v, int64_t *out)
{
    char shown[32];
    if (turbod_json_int(v, (int64_t)f->lo, (int64_t)f->hi, out))
        return true;
    turbod_reply_error(c->x, 400, "invalid_value", f->name,
                       "%s is %s; give a whole number from %lld to %lld", f->name,
                       turbod_json_show(v, shown), (long long)f->lo, (long long)f->hi);
    return false;
}

static bool read_int64(ctx *c, const turbod_field *f, const cJSON *v)
{
    int64_t i;
    if (!read_long(c, f, v, &i))
        return false;
    memcpy((char *)c->p + f->at, &i, sizeof i);
    return true;
}

static bool read_int32(ctx *c, const turbod_field *f, const cJSON *v)
{
    int64_t i;
    if (!read_long(c, f, v, &i))
        return false;
    int32_t value = (int32_t)i;
    memcpy((char *)c->p + f->at, &value, sizeof value);
    return true;
}

/* -1 and 0 both mean off. */
static bool read_top_k(ctx *c, const turbod_field *f, const cJSON *v)
{
    int64_t i;
    if (!read_long(c, f, v, &i))
        return false;
    c->p->s.top_k = i > 0 ? (int32_t)i : 0;
    return true;
}

static bool read_bool(ctx *c, const turbod_field *f, const cJSON *v)
{
    bool value = cJSON_IsTrue(v);
    if (!cJSON_IsBool(v))
        return turbod_params_bad(c, f->name, v, "true or false");
    memcpy((char *)c->p + f->at, &value, sizeof value);
    return true;
}

static bool read_not_bool(ctx *c, const turbod_field *f, const cJSON *v)
{
    bool value = cJSON_IsFalse(v);
    if (!cJSON_IsBool(v))
        return turbod_params_bad(c, f->name, v, "true or false");
    memcpy((char *)c->p + f->at, &value, sizeof value);
    return true;
}

static bool read_seed(ctx *c, const turbod_field *f, const cJSON *v)
{
    int64_t i;
    if (!read_long(c, f, v, &i))
        return false;
    c->p->s.seed = (uint64_t)i;
    c->seed_given = true;
    return true;
}

/* Read elsewhere: messages, prompt, and the model, whose vocabulary the others are checked against. */
static bool skip(ctx *c, const turbod_field *f, const cJSON *v)
{
    (void)c;
    (void)f;
    (void)v;
    return true;
}

static bool read_stream_options(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (!cJSON_IsObject(v))
        return turbod_params_bad(c, f->name, v, "an object such as {\"include_usage\":true}");
    c->stream_options = true;
    for (const cJSON *o = v->child; o; o = o->next) {
        if (cJSON_IsNull(o))
            continue;
        bool each = !strcmp(o->string, "continuous_usage_stats");
        if (!each && strcmp(o->string, "include_usage")) {
            if (!turbod_unknown_field(c->x, &c->p->warnings, "stream_options.", o->string))
                return false;
        } else if (!cJSON_IsBool(o)) {
            return turbod_params_bad(c,
                                     each ? "stream_options.continuous_usage_stats"
                                          : "stream_options.include_usage",
                                     o, "true or false");
        } else if (each) {
            c->p->continuous_usage = cJSON_IsTrue(o);
        } else {
            c->p->include_usage = cJSON_IsTrue(o);
        }
    }
    return true;
}

static bool read_request_id(ctx *c, const turbod_field *f, const cJSON *v)
{
    static const char ok[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = cJSON_IsString(v) ? strlen(v->valuestring) : 0;
    if (n < 1 || n > 64 || strspn(v->valuestring, ok) != n)
        return turbod_params_bad(c, f->name, v, "1 to 64 of A-Z a-z 0-9 . _ -");
    pthread_mutex_lock(&c->x->mu);
    if (c->x->own_id) /* a header wins over the body */
        memcpy(c->x->id, v->valuestring, n + 1);
    pthread_mutex_unlock(&c->x->mu);
    return true;
}

static bool read_policy(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (!cJSON_IsString(v) || strlen(v->valuestring) >= sizeof c->p->policy)
        return turbod_params_bad(c, f->name, v, "the name of a policy, see GET /props");
    memcpy(c->p->policy, v->valuestring, strlen(v->valuestring) + 1);
    c->p->policy_given = true;
    return true;
}

static bool read_policy_args(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (!cJSON_IsObject(v))
        return turbod_params_bad(c, f->name, v, "an object");
    c->p->policy_args = v;
    return true;
}

/* Text that only the caller's own records use; checked, nothing else. */
static bool read_user(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (!cJSON_IsString(v) || strlen(v->valuestring) > 256)
        return turbod_params_bad(c, f->name, v, "a string of at most 256 bytes");
    return true;
}

static bool read_salt(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (!cJSON_IsString(v) || strlen(v->valuestring) > TURBOD_MAX_SALT)
        return turbod_params_bad(c, f->name, v, "a string of at most 256 bytes");
    memcpy(c->p->cache_salt, v->valuestring, strlen(v->valuestring) + 1);
    return true;
}

static bool read_metadata(ctx *c, const turbod_field *f, const cJSON *v)
{
    int n = 0;
    if (!cJSON_IsObject(v))
        return turbod_params_bad(c, f->name, v, "an object of strings");
    for (const cJSON *o = v->child; o; o = o->next)
        if (++n > 16 || !cJSON_IsString(o) || strlen(o->valuestring) > 512)
            return turbod_params_bad(c, f->name, o, "at most 16 strings of at most 512 bytes");
    return true;
}

static bool refused(ctx *c, const char *name)
{
    turbod_reply_error(c->x, 400, "unsupported_value", name,
                       "%s is not supported by this version; leave it out", name);
    return false;
}

/* Only the value that changes nothing is taken: lo, or false where lo is 0, or true where it is 1. */
static bool neutral(ctx *c, const turbod_field *f, const cJSON *v)
{
    double d;
    if (cJSON_IsBool(v) && f->lo >= 0 && f->lo <= 1)
        return cJSON_IsTrue(v) == (f->lo > 0) ? true : refused(c, f->name);
    return turbod_json_num(v, f->lo, f->lo, &d) ? true : refused(c, f->name);
}

/* Only nothing is taken: "", [], {}, false, "none" or "auto". */
static bool nothing(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (cJSON_IsFalse(v) || ((cJSON_IsArray(v) || cJSON_IsObject(v)) && !v->child))
        return true;
    if (cJSON_IsString(v) && (!v->valuestring[0] || !strcmp(v->valuestring, "none")))
        return true;
    return refused(c, f->name);
}

static bool read_tool_choice(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (cJSON_IsString(v) && (!strcmp(v->valuestring, "none") || !strcmp(v->valuestring, "auto")))
        return true; /* without tools, which are refused, both mean the same */
    return refused(c, f->name);
}

static bool read_tier(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (cJSON_IsString(v) && (!strcmp(v->valuestring, "auto") || !strcmp(v->valuestring, "default")))
        return true;
    return refused(c, f->name);
}

static bool read_modalities(ctx *c, const turbod_field *f, const cJSON *v)
{
    if (cJSON_IsArray(v) && v->child && !v->child->next && cJSON_IsString(v->child) &&
        !strcmp(v->child->valuestring, "text"))
        return true;
    return refused(c, f->name);
}

static bool read_response_format(ctx *c, const turbod_field *f, const cJSON *v)
{
    const cJSON *type = turbod_json_get(v, "type");
    if (!cJSON_IsObject(v) || !cJSON_IsString(type))
        return turbod_params_bad(c, f->name, v, "an object with a type");
    if (!strcmp(type->valuestring, "text"))
        return true;
    turbod_reply_error(c->x, 400, "unsupported_value", f->name,
                       "response_format %.40s is not supported by this version; use "
                       "{\"type\":\"text\"}",
                       type->valuestring);
    return false;
}

/* These routes keep no history. */
static bool read_no_session(ctx *c, const turbod_field *f, const cJSON *v)
{
    double d;
    if (cJSON_IsFalse(v) || turbod_json_num(v, f->lo, f->lo, &d))
        return true;
    turbod_reply_error(c->x, 400, "unsupported_value", f->name,
                       "this route keeps no history; POST /v1/chat/interactive does");
    return false;
}

/* ---- the table ----------------------------------------------------------------------------------------- */

#define ALL (FOR_CHAT | FOR_COMPLETION | FOR_INTERACTIVE)
#define BOTH (FOR_CHAT | FOR_COMPLETION)
#define INTER FOR_INTERACTIVE
#define CHAT FOR_CHAT
#define COMP FOR_COMPLETION
#define P(member) offsetof(turbod_params, member)
#define INT32 2147483647.0

static const turbod_field fields[] = {
    {"model", ALL, skip, 0, 0, 0},
    {"messages", CHAT, skip, 0, 0, 0},
    {"prompt", COMP, skip, 0, 0, 0},
    {"stream", ALL, read_bool, P(stream), 0, 0},
    {"stream_options", BOTH, read_stream_options, 0, 0, 0},
    {"max_tokens", ALL, read_int64, P(max_tokens), 1, INT32},
    {"max_completion_tokens", ALL, read_int64, P(max_completion), 1, INT32},
    {"max_new_tokens", ALL, read_int64, P(max_completion), 1, INT32},
    {"n", BOTH, read_int64, P(n), 1, TURBOD_MAX_N},
    {"best_of", COMP, neutral, 0, 1, 0},
    {"seed", ALL, read_seed, 0, (double)-TURBOD_SAFE_INT, (double)TURBOD_SAFE_INT},
    {"stop", ALL, turbod_read_stop, 0, 0, 0},
    {"temperature", ALL, read_float, P(s.temperature), 0, 2},
    {"top_p", ALL, read_float, P(s.top_p), 1e-12, 1},
    {"top_k", ALL, read_top_k, 0, -1, INT32},
    {"min_p", ALL, read_float, P(s.min_p), 0, 1},
    {"presence_penalty", ALL, read_float, P(s.presence_penalty), -2, 2},
    {"frequency_penalty", ALL, read_float, P(s.frequency_penalty), -2, 2},
    {"repetition_penalty", ALL, read_float, P(s.repetition_penalty), 1e-6, 10},
    {"repeat_penalty", ALL, read_float, P(s.repetition_penalty), 1e-6, 10},
    {"min_tokens", ALL, read_int32, P(s.min_tokens), 0, INT32},
    {"min_new_tokens", ALL, read_int32, P(s.min_tokens), 0, INT32},
    {"logprobs", CHAT, read_bool, P(logprobs), 0, 0},
    {"logprobs", COMP, read_int32, P(s.n_logprobs), 0, 20},
    {"top_logprobs", CHAT, read_int64, P(top_logprobs), 0, 20},
    {"logit_bias", ALL, turbod_read_bias, 0, 0, 0},
    {"allowed_token_ids", ALL, turbod_read_allowed, 0, 0, 0},
    {"bad_words", ALL, turbod_read_bad_words, 0, 0, 0},
    {"stop_token_ids", ALL, turbod_read_stop_ids, 0, 0, 0},
    {"ignore_eos", ALL, read_bool, P(ignore_eos), 0, 0},
    {"include_stop_str_in_output", ALL, read_bool, P(include_stop), 0, 0},
    {"skip_special_tokens", ALL, read_not_bool, P(keep_special), 0, 0},
    {"spaces_between_special_tokens", ALL, read_bool, P(spaces), 0, 0},
    {"return_token_ids", ALL, read_bool, P(return_ids), 0, 0},
    {"echo", COMP, read_bool, P(echo), 0, 0},
    {"echo", CHAT, neutral, 0, 0, 0},
    {"add_generation_prompt", CHAT, read_bool, P(add_generation_prompt), 0, 0},
    {"continue_final_message", CHAT, read_bool, P(continue_final), 0, 0},
    {"request_id", ALL, read_request_id, 0, 0, 0},
    {"policy", ALL, read_policy, 0, 0, 0},
    {"policy_args", ALL, read_policy_args, 0, 0, 0},
    {"priority", ALL, read_int32, P(priority), -TURBOD_MAX_PRIORITY, TURBOD_MAX_PRIORITY},
    {"cache_salt", ALL, read_salt, 0, 0, 0},
    {"user", ALL, read_user, 0, 0, 0},
    {"safety_identifier", ALL, read_user, 0, 0, 0},
    {"metadata", ALL, read_metadata, 0, 0, 0},
    {"response_format", ALL, read_response_format, 0, 0, 0},
    {"tool_choice", CHAT, read_tool_choice, 0, 0, 0},
    {"parallel_tool_calls", CHAT, read_bool, P(parallel), 0, 0},
    {"function_call", CHAT, read_tool_choice, 0, 0, 0},
    {"service_tier", ALL, read_tier, 0, 0, 0},
    {"modalities", CHAT, read_modalities, 0, 0, 0},
    /* refused unless they say nothing */
    {"suffix", COMP, nothing, 0, 0, 0},
    {"tools", CHAT, nothing, 0, 0, 0},
    {"functions", CHAT, nothing, 0, 0, 0},
    {"chat_template_kwargs", CHAT, nothing, 0, 0, 0},
    {"chat_template", CHAT, nothing, 0, 0, 0},
    {"reasoning_effort", CHAT, nothing, 0, 0, 0},
    {"documents", CHAT, nothing, 0, 0, 0},
    {"audio", CHAT, nothing, 0, 0, 0},
    {"prediction", CHAT, nothing, 0, 0, 0},
    {"web_search_options", CHAT, nothing, 0, 0, 0},
    {"mm_processor_kwargs", CHAT, nothing, 0, 0, 0},
    {"store", ALL, nothing, 0, 0, 0},
    {"logits_processors", ALL, nothing, 0, 0, 0},
    {"guided_json", ALL, nothing, 0, 0, 0},
    {"guided_regex", ALL, nothing, 0, 0, 0},
    {"guided_choice", ALL, nothing, 0, 0, 0},
    {"guided_grammar", ALL, nothing, 0, 0, 0},
    {"structured_outputs", ALL, nothing, 0, 0, 0},
    {"structural_tag", ALL, nothing, 0, 0, 0},
    {"grammar", ALL, nothing, 0, 0, 0},
    {"json_schema", ALL, nothing, 0, 0, 0},
    {"input_ids", ALL, nothing, 0, 0, 0},
    {"image_data", ALL, nothing, 0, 0, 0},
    {"lora", ALL, nothing, 0, 0, 0},
    {"session_id", BOTH, read_no_session, 0, -1, 0},
    {"interactive_mode", BOTH, read_no_session, 0, 0, 0},
    /* LMDeploy's /v1/chat/interactive; interactive.c reads the rest of these itself */
    {"prompt", INTER, skip, 0, 0, 0},
    {"session_id", INTER, skip, 0, 0, 0},
    {"interactive_mode", INTER, skip, 0, 0, 0},
    {"cancel", INTER, skip, 0, 0, 0},
    {"request_output_len", INTER, read_int64, P(max_completion), 1, INT32},
    {"image_url", INTER, nothing, 0, 0, 0},
    {"adapter_name", INTER, nothing, 0, 0, 0},
    {"n", INTER, neutral, 0, 1, 0},
    {"use_beam_search", ALL, neutral, 0, 0, 0},
    {"length_penalty", ALL, neutral, 0, 1, 0},
    {"early_stopping", ALL, neutral, 0, 0, 0},
    {"prompt_logprobs", ALL, neutral, 0, 0, 0},
    {"truncate_prompt_tokens", ALL, neutral, 0, -1, 0},
    {"typical_p", ALL, neutral, 0, 1, 0},
    {"tfs_z", ALL, neutral, 0, 1, 0},
    {"mirostat", ALL, neutral, 0, 0, 0},
    {"dry_multiplier", ALL, neutral, 0, 0, 0},
    {"xtc_probability", ALL, neutral, 0, 0, 0},
    {"top_n_sigma", ALL, neutral, 0, -1, 0},
    {"repetition_ngram_size", ALL, neutral, 0, 0, 0},
    {"repetition_ngram_threshold", ALL, neutral, 0, 0, 0},
};

bool turbod_unknown_field(turbod_exchange *x, turbod_buf *w, const char *where, const char *name)
{
    char shown[65];
    size_t n = strlen(name);
    n = n < 64 ? n : 64;
    while (n && n < strlen(name) && ((unsigned char)name[n] & 0xC0) == 0x80)
        n--;
    memcpy(shown, name, n);
    shown[n] = '\0';
    if (x->strict) {
        turbod_reply_error(x, 400, "unknown_field", shown,
                           "%s%s is not a field this server knows; X-Turbo-Strict: 1 refuses it",
                           where, shown);
        return false;
    }
    if (w->len > 16384)
        return true; /* enough was said */
    turbod_buf_str(w, w->len ? ",\"unknown field " : "\"unknown field ");
    turbod_buf_str(w, where);
    turbod_buf_json(w, shown, n);
    turbod_buf_str(w, " was not used\"");
    return true;
}

static const turbod_field *find(const char *name, int kind)
{
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if ((fields[i].kinds & kind) && !strcmp(fields[i].name, name))
            return &fields[i];
    return NULL;
}

/* Rules over several fields. */
static bool settle(ctx *c, int kind)
{
    turbod_params *p = c->p;
    if (p->max_tokens && p->max_completion && p->max_tokens != p->max_completion) {
        turbod_reply_error(c->x, 400, "invalid_value", "max_completion_tokens",
                           "max_tokens is %lld and max_completion_tokens %lld; give one of them",
                           (long long)p->max_tokens, (long long)p->max_completion);
        return false;
    }
    p->max_tokens = p->max_completion ? p->max_completion : p->max_tokens;
    if (c->stream_options && !p->stream) {
        turbod_reply_error(c->x, 400, "invalid_value", "stream_options",
                           "stream_options needs stream: true");
        return false;
    }
    if (kind == FOR_CHAT && p->top_logprobs >= 0 && !p->logprobs) {
        turbod_reply_error(c->x, 400, "invalid_value", "top_logprobs",
                           "top_logprobs needs logprobs: true");
        return false;
    }
    if (kind == FOR_CHAT && p->logprobs)
        p->s.n_logprobs = p->top_logprobs > 0 ? (int32_t)p->top_logprobs : 0;
    if (p->spaces && p->keep_special) {
        turbod_reply_error(c->x, 400, "unsupported_value", "spaces_between_special_tokens",
                           "spaces between special tokens are not supported by this version; set "
                           "it to false");
        return false;
    }
    if (p->echo && p->s.n_logprobs >= 0) {
        turbod_reply_error(c->x, 400, "unsupported_value", "echo",
                           "log probabilities of an echoed prompt are not supported by this "
                           "version; drop echo or logprobs");
        return false;
    }
    if (!c->seed_given && getrandom(&p->s.seed, sizeof p->s.seed, 0) != (ssize_t)sizeof p->s.seed)
        p->s.seed = (uint64_t)turbod_ms();
    return true;
}

bool turbod_params_read(turbod_exchange *x, const cJSON *body, int kind, turbod_params *p)
{
    const turbod_service *svc = x->svc;
    ctx c = {.x = x, .p = p};
    p->s = svc->defaults;
    p->s.n_logprobs = -1;
    p->n = 1;
    p->top_logprobs = -1;
    p->add_generation_prompt = true;
    turbod_buf_init(&p->warnings, 32768);
    for (const cJSON *v = body->child; v; v = v->next) {
        const turbod_field *f = find(v->string, kind);
        if (!f) {
            if (!turbod_unknown_field(x, &p->warnings, "", v->string))
                return false;
        } else if (!cJSON_IsNull(v) && !f->read(&c, f, v)) {
            return false;
        }
    }
    return settle(&c, kind) && turbod_lists_settle(&c, kind);
}

void turbod_params_free(turbod_params *p)
{
    free(p->bias);
    free(p->allowed);
    free(p->bad_ids);
    free(p->bad_len);
    free(p->stop_ids);
    turbod_buf_free(&p->warnings);
    turbod_policy_free(p->script);
}

/* ---- policy -------------------------------------------------------------------------------------------- */

bool turbod_params_policy(turbod_exchange *x, turbod_params *p)
{
    turbod_service *svc = x->svc;
    const turbod_conf *conf = __atomic_load_n(&svc->conf, __ATOMIC_ACQUIRE);
    const char *name = p->policy_given ? p->policy : conf->default_policy;
    if (!name || !*name) {
        if (!p->policy_args)
            return true;
        turbod_reply_error(x, 400, "invalid_value", "policy_args", "policy_args needs a policy");
        return false;
    }
    p->script = turbod_policies_find(svc->policies, name);
    if (!p->script)
        turbod_reply_error(x, 400, "policy_not_found", "policy",
                           "there is no policy of this name; GET /v1/policies lists them");
    return p->script;
}

bool turbod_params_steer(turbod_exchange *x, const turbod_params *p, uint64_t seed,
                         turbod_policy_result *out)
{
    turbo_err err = {{0}};
    turbo_sample_params asked = p->s;
    asked.seed = seed;
    *out = (turbod_policy_result){.params = asked};
    turbo_status st =
        p->script ? turbod_policy_request(p->script, &asked, p->policy_args, out, &err) : TURBO_OK;
    if (!st)
        return true;
    turbod_clean_message(err.text);
    if (st == TURBO_ENOMEM)
        turbod_reply_status(x, st, "policy", &err);
    else if (st == TURBO_ECANCELLED)
        turbod_reply_error(x, 400, "policy_rejected", "policy", "%s", err.text);
    else if (st == TURBO_EINVAL)
        turbod_reply_error(x, 400, "invalid_value", "policy_args", "%s", err.text);
    else if (st == TURBO_ELIMIT)
        turbod_reply_error(x, 500, "script_timeout", "policy", "%s", err.text);
    else
        turbod_reply_error(x, 500, "script_error", "policy", "%s", err.text);
    return false;
}
