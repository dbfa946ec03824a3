/* core/net/api_native.c: routes beside OpenAI's: state, tokens, templates, abort.
 * GET on the daemon thread, POST on a worker. */
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif
#include "net/gen.h"
#include "util/json.h"

#ifndef PACKAGE_VERSION
#define PACKAGE_VERSION "unversioned"
#endif

#define HEALTHY_S 10.0 /* the engine must have shown life so recently */

/* ---- state --------------------------------------------------------------------------------------------- */

/* From well to bad: of several models the worst one is the server's. */
typedef enum { OK, DRAINING, LOADING, STALLED, FAILED } condition;
static const char *const condition_names[] = {"ok", "draining", "loading", "stalled", "failed"};

static condition condition_of(turbod_service *svc)
{
    switch (atomic_load(&svc->state)) {
    case TURBOD_LOADING: return LOADING;
    case TURBOD_DRAINING: return DRAINING;
    case TURBOD_FAILED: return FAILED;
    default: {
        double age = turbod_engine_age(svc->engine);
        return age < 0 ? FAILED : age <= HEALTHY_S ? OK : STALLED;
    }
    }
}

static void text_member(turbod_buf *b, const char *key, const char *value)
{
    turbod_buf_printf(b, "\"%s\":\"", key);
    turbod_buf_json(b, value, strlen(value));
    turbod_buf_str(b, "\"");
}

/* Part of all weights that is loaded. */
static double progress(const turbod_services *all)
{
    uint64_t total = 0, done = 0;
    for (size_t i = 0; i < all->n; i++) {
        total += atomic_load(&all->at[i].load_total);
        done += atomic_load(&all->at[i].load_done);
    }
    return total ? (double)done / (double)total : 0.0;
}

void turbod_api_health(turbod_exchange *x)
{
    const turbod_services *all = x->http->models;
    turbod_buf *b = &x->reply.body;
    condition each[TURBOD_MAX_MODELS];
    size_t worst = 0;
    for (size_t i = 0; i < all->n; i++) {
        each[i] = condition_of(&all->at[i]);
        worst = each[i] > each[worst] ? i : worst;
    }
    x->reply.status = each[worst] == OK ? 200 : 503;
    turbod_buf_printf(b, "{\"status\":\"%s\"", condition_names[each[worst]]);
    if (each[worst] == LOADING) {
        turbod_buf_printf(b, ",\"progress\":%.3f", progress(all));
        x->reply.retry_after = 2;
    } else if (each[worst] == STALLED) {
        turbod_buf_printf(b, ",\"seconds_since_step\":%.1f",
                          turbod_engine_age(all->at[worst].engine));
    }
    if (all->n > 1 && (each[worst] == STALLED || each[worst] == FAILED)) {
        turbod_buf_str(b, ",");
        text_member(b, "model", all->at[worst].name);
    }
    for (size_t i = 0; all->n > 1 && i < all->n; i++) {
        turbod_buf_str(b, i ? ",\"" : ",\"models\":{\"");
        turbod_buf_json(b, all->at[i].name, strlen(all->at[i].name));
        turbod_buf_printf(b, "\":\"%s\"%s", condition_names[each[i]], i + 1 < all->n ? "" : "}");
    }
    turbod_buf_str(b, "}");
}

/* Ready to take requests of every model. One whose engine has failed is not; with one model the process ends
 * for that. */
void turbod_api_ready(turbod_exchange *x)
{
    const turbod_services *all = x->http->models;
    bool ready = !atomic_load(&x->http->quiet);
    for (size_t i = 0; i < all->n && ready; i++)
        ready = atomic_load(&all->at[i].state) == TURBOD_READY &&
                (all->n == 1 || turbod_engine_age(all->at[i].engine) >= 0);
    x->reply.status = ready ? 200 : 503;
    turbod_buf_str(&x->reply.body, ready ? "{\"ready\":true}" : "{\"ready\":false}");
}

void turbod_api_version(turbod_exchange *x)
{
    x->reply.status = 200;
    turbod_buf_printf(&x->reply.body, "{\"version\":\"%s\",\"plugin_abi\":\"%d.%d\"}",
                      PACKAGE_VERSION, TURBO_ABI_MAJOR, TURBO_ABI_MINOR);
}

/* ---- properties ----------------------------------------------------------------------------------------- */

static void limits_json(turbod_buf *b, const turbod_exchange *x)
{
    turbod_buf_printf(b,
                      "\"limits\":{\"session_len\":%d,\"body_bytes\":%llu,\"n\":%d,\"prompts\":%d,"
                      "\"stop\":%d,\"stop_bytes\":%d,\"logit_bias\":%d,\"top_logprobs\":20,"
                      "\"request_timeout_ms\":%lld,\"queue_timeout_ms\":%lld}",
                      turbod_engine_facts_of(x->svc->engine)->session_len,
                      (unsigned long long)x->rules->body_limit, TURBOD_MAX_N, TURBOD_MAX_PROMPTS,
                      TURBOD_MAX_STOPS, TURBOD_MAX_STOP_BYTES, TURBOD_MAX_BIAS,
                      (long long)x->rules->request_ms, (long long)x->rules->queue_ms);
}

void turbod_api_props(turbod_exchange *x)
{
    const turbod_service *svc = x->svc;
    const turbod_engine_facts *f = turbod_engine_facts_of(svc->engine);
    const turbod_template *chat = __atomic_load_n(&svc->chat, __ATOMIC_ACQUIRE);
    const turbo_sample_params *d = &svc->defaults;
    turbod_buf *b = &x->reply.body;
    x->reply.status = 200;
    turbod_buf_str(b, "{");
    text_member(b, "model", svc->name);
    turbod_buf_str(b, ",");
    text_member(b, "architecture", f->model.arch);
    turbod_buf_printf(b,
                      ",\"layers\":%d,\"heads\":%d,\"kv_heads\":%d,\"head_dim\":%d,"
                      "\"embed_dim\":%d,\"vocab\":%d,\"max_position\":%d,\"bos\":%d,",
                      f->model.n_layers, f->model.n_heads, f->model.n_kv, f->model.head_dim,
                      f->model.embed_dim, f->model.vocab, f->model.max_position, f->model.bos);
    text_member(b, "device", f->device ? f->device : "");
    turbod_buf_printf(b,
                      ",\"kv_blocks\":%d,\"block_tokens\":%d,\"kv_dtype\":\"%s\","
                      "\"chat_template\":",
                      f->kv_blocks, f->block_tokens, f->kv_type);
    if (chat) {
        const char *name = turbod_template_name(chat), *slash = strrchr(name, '/');
        turbod_buf_str(b, "\"");
        turbod_buf_json(b, slash ? slash + 1 : name, strlen(slash ? slash + 1 : name));
        turbod_buf_str(b, "\"");
    } else {
        turbod_buf_str(b, "null");
    }
    turbod_buf_str(b, ",\"policies\":");
    turbod_policies_json(svc->policies, true, b);
    turbod_buf_printf(b,
                      ",\"defaults\":{\"temperature\":%.6g,\"top_p\":%.6g,\"top_k\":%d,"
                      "\"repetition_penalty\":%.6g},",
                      (double)d->temperature, (double)d->top_p, d->top_k,
                      (double)d->repetition_penalty);
    limits_json(b, x);
    turbod_buf_str(b, "}");
}

/* ---- tokens -------------------------------------------------------------------------------------------- */

typedef struct native_body {
    cJSON *json;
    const cJSON *prompt, *messages, *tokens;
    bool add_special, parse_special, generation, continue_final, keep_special;
    turbod_buf warnings;
} native_body;

static void native_free(native_body *n)
{
    cJSON_Delete(n->json);
    turbod_buf_free(&n->warnings);
}

static bool native_field(turbod_exchange *x, native_body *n, const cJSON *v)
{
    struct {
        const char *name;
        bool *flag;
        bool inverse;
    } flags[] = {
        {"add_special_tokens", &n->add_special, false},
        {"parse_special", &n->parse_special, false},
        {"add_generation_prompt", &n->generation, false},
        {"continue_final_message", &n->continue_final, false},
        {"skip_special_tokens", &n->keep_special, true},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (strcmp(v->string, flags[i].name))
            continue;
        if (!cJSON_IsBool(v)) {
            turbod_reply_error(x, 400, "invalid_value", v->string, "%s is %s; give true or false",
                               flags[i].name, turbod_json_kind(v));
            return false;
        }
        *flags[i].flag = cJSON_IsTrue(v) != flags[i].inverse;
        return true;
    }
    if (!strcmp(v->string, "model"))
        return true; /* turbod_choose_by_body has read it */
    if (!strcmp(v->string, "prompt") || !strcmp(v->string, "content"))
        n->prompt = v;
    else if (!strcmp(v->string, "messages"))
        n->messages = v;
    else if (!strcmp(v->string, "tokens"))
        n->tokens = v;
    else
        return turbod_unknown_field(x, &n->warnings, "", v->string);
    return true;
}

static bool native_read(turbod_exchange *x, native_body *n)
{
    *n = (native_body){.add_special = true, .generation = true, .keep_special = true};
    turbod_buf_init(&n->warnings, 32768);
    n->json = turbod_body_json(x);
    if (!n->json || !turbod_choose_by_body(x, n->json))
        return false;
    bool generation_given = turbod_json_get(n->json, "add_generation_prompt");
    for (const cJSON *v = n->json->child; v; v = v->next)
        if (!cJSON_IsNull(v) && !native_field(x, n, v))
            return false;
    if (n->continue_final && !generation_given)
        n->generation = false;
    return true;
}

static void native_end(turbod_exchange *x, const native_body *n)
{
    turbod_buf *b = &x->reply.body;
    if (n->warnings.len) {
        turbod_buf_str(b, ",\"warnings\":[");
        turbod_buf_add(b, n->warnings.ptr, n->warnings.len);
        turbod_buf_str(b, "]");
    }
    turbod_buf_str(b, "}");
    x->reply.status = 200;
}

static bool tokenize(turbod_exchange *x, native_body *n, int32_t **ids, size_t *count)
{
    const turbod_service *svc = x->svc;
    turbo_err err = {{0}};
    turbo_status st;
    if (n->messages) {
        turbod_messages m = {0};
        turbod_render_opts opts = {n->generation, n->continue_final, NULL};
        bool ok = turbod_messages_read(x, n->messages, &n->warnings, &m);
        turbod_slots slots = {0};
        st = ok ? turbod_service_prompt(svc, m.v, m.n, &opts, ids, count, &slots, &err) : TURBO_OK;
        turbod_slots_free(&slots);
        turbod_messages_free(&m);
        if (!ok)
            return false;
    } else if (cJSON_IsString(n->prompt)) {
        st = turbod_service_encode(svc, n->prompt->valuestring, strlen(n->prompt->valuestring),
                                   n->add_special, n->parse_special, ids, count, &err);
    } else {
        turbod_reply_error(x, 400, "invalid_value", "prompt",
                           "give a prompt (a string) or messages (a list)");
        return false;
    }
    if (st)
        turbod_reply_status(x, st, n->messages ? "messages" : "prompt", &err);
    return !st;
}

void turbod_api_tokenize(turbod_exchange *x)
{
    native_body n;
    int32_t *ids = NULL;
    size_t count = 0;
    if (native_read(x, &n) && tokenize(x, &n, &ids, &count)) {
        turbod_buf_str(&x->reply.body, "{\"tokens\":");
        turbod_ids_json(&x->reply.body, ids, count);
        turbod_buf_printf(&x->reply.body, ",\"count\":%zu,\"max_model_len\":%d", count,
                          turbod_engine_facts_of(x->svc->engine)->session_len);
        native_end(x, &n);
    }
    free(ids);
    native_free(&n);
}

static bool detokenize(turbod_exchange *x, const native_body *n)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(x->svc->engine);
    turbod_buf *b = &x->reply.body;
    const char *text;
    size_t len;
    if (!f->tok_vtbl || !cJSON_IsArray(n->tokens)) {
        turbod_reply_error(x, 400, "invalid_value", "tokens",
                           f->tok_vtbl ? "give tokens, a list of token ids"
                                       : "this model has no tokenizer");
        return false;
    }
    turbod_detok *d = turbod_detok_new(f->tok_vtbl, f->tok, n->keep_special);
    if (!d) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        return false;
    }
    turbod_buf_str(b, "{\"prompt\":\"");
    for (const cJSON *e = n->tokens->child; e; e = e->next) {
        int64_t id;
        if (!turbod_json_int(e, 0, f->tok_info.n_vocab - 1, &id)) {
            turbod_reply_error(x, 400, "invalid_token", "tokens",
                               "tokens holds %s; token ids are 0 to %d", turbod_json_kind(e),
                               f->tok_info.n_vocab - 1);
            turbod_detok_free(d);
            return false;
        }
        turbod_detok_push(d, (int32_t)id, &text, &len);
        turbod_buf_json(b, text, len);
    }
    turbod_detok_flush(d, &text, &len);
    turbod_buf_json(b, text, len);
    turbod_buf_str(b, "\"");
    turbod_detok_free(d);
    return true;
}

void turbod_api_detokenize(turbod_exchange *x)
{
    native_body n;
    if (native_read(x, &n) && detokenize(x, &n))
        native_end(x, &n);
    native_free(&n);
}

static bool render(turbod_exchange *x, native_body *n)
{
    const turbod_template *chat = __atomic_load_n(&x->svc->chat, __ATOMIC_ACQUIRE);
    turbod_render_opts opts = {n->generation, n->continue_final, NULL};
    turbod_render r = {0};
    turbod_messages m = {0};
    turbo_err err = {{0}};
    if (!chat) {
        turbod_reply_error(x, 400, "no_chat_template", NULL, "this model has no chat template");
        return false;
    }
    bool ok = turbod_messages_read(x, n->messages, &n->warnings, &m);
    turbo_status st = ok ? turbod_template_render(chat, m.v, m.n, &opts, &r, &err) : TURBO_OK;
    if (st)
        turbod_reply_status(x, st, "messages", &err);
    if (ok && !st) {
        turbod_buf_str(&x->reply.body, "{\"prompt\":\"");
        for (size_t i = 0; i < r.n; i++)
            if (r.segments[i].image)
                turbod_buf_str(&x->reply.body, "<image>");
            else
                turbod_buf_json(&x->reply.body, r.text.ptr + r.segments[i].at, r.segments[i].len);
        turbod_buf_str(&x->reply.body, "\"");
    }
    turbod_render_free(&r);
    turbod_messages_free(&m);
    return ok && !st;
}

void turbod_api_template(turbod_exchange *x)
{
    native_body n;
    if (native_read(x, &n) && render(x, &n))
        native_end(x, &n);
    native_free(&n);
}

/* ---- abort --------------------------------------------------------------------------------------------- */

void turbod_api_abort(turbod_exchange *x)
{
    cJSON *body = turbod_body_json(x);
    const cJSON *id = turbod_json_get(body, "request_id"), *all = turbod_json_get(body, "abort_all");
    if (!body)
        return;
    for (const cJSON *v = body->child; v && !x->reply.status; v = v->next)
        if (strcmp(v->string, "request_id") && strcmp(v->string, "abort_all"))
            turbod_reply_error(x, 400, "unknown_field", v->string,
                               "the fields are request_id and abort_all");
    if (x->reply.status) {
        cJSON_Delete(body);
        return;
    }
    if ((id && !cJSON_IsString(id)) || (all && !cJSON_IsBool(all)) ||
        (!id && !cJSON_IsTrue(all))) {
        turbod_reply_error(x, 400, "invalid_value", "request_id",
                           "give request_id (a string), or abort_all: true with an admin key");
    } else if (cJSON_IsTrue(all) && !x->admin) {
        turbod_reply_error(x, 403, "permission_denied", "abort_all", "this needs an admin key");
    } else {
        int n = turbod_http_abort(x->http, cJSON_IsTrue(all) ? NULL : id->valuestring,
                                  x->admin ? NULL : x->label);
        if (n < 0) {
            turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        } else {
            x->reply.status = 200;
            turbod_buf_printf(&x->reply.body, "{\"aborted\":%d}", n);
        }
    }
    cJSON_Delete(body);
}
