/* core/net/completions.c: POST /v1/completions. Workers.
 * A prompt is a text, a list of texts, a list of token ids, or a list of such lists. */
#include <stdlib.h>
#include <string.h>

#include "net/gen.h"
#include "util/json.h"

static bool bad_prompt(turbod_exchange *x, const cJSON *v)
{
    turbod_reply_error(x, 400, "invalid_value", "prompt",
                       "prompt is %s; give a string, a list of strings, a list of token ids or a "
                       "list of such lists",
                       cJSON_IsArray(v) ? "an empty or mixed list" : turbod_json_kind(v));
    return false;
}

static bool ids_prompt(turbod_exchange *x, const cJSON *v, turbod_prompt *out)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(x->svc->engine);
    int32_t most = f->tok_vtbl ? f->tok_info.n_vocab : f->model.vocab;
    size_t n = 0;
    if (!v->child)
        return bad_prompt(x, v);
    for (const cJSON *e = v->child; e; e = e->next)
        n++;
    out->ids = calloc(n, sizeof *out->ids);
    if (!out->ids) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this prompt");
        return false;
    }
    for (const cJSON *e = v->child; e; e = e->next) {
        int64_t id;
        if (!cJSON_IsNumber(e))
            return bad_prompt(x, v);
        if (!turbod_json_int(e, 0, most - 1, &id)) {
            turbod_reply_error(x, 400, "invalid_token", "prompt",
                               "prompt holds %s; token ids are 0 to %d", turbod_json_kind(e),
                               most - 1);
            return false;
        }
        out->ids[out->n++] = (int32_t)id;
    }
    return true;
}

static bool text_prompt(turbod_exchange *x, const cJSON *v, turbod_prompt *out)
{
    turbo_err err = {{0}};
    turbo_status st = turbod_service_encode(x->svc, v->valuestring, strlen(v->valuestring), true,
                                            false, &out->ids, &out->n, &err);
    if (st) {
        turbod_reply_status(x, st, "prompt", &err);
        return false;
    }
    if (!out->n) {
        turbod_reply_error(x, 400, "invalid_value", "prompt", "the prompt is empty");
        return false;
    }
    return true;
}

static bool is_list_of(const cJSON *v, bool (*is)(const cJSON *))
{
    if (!cJSON_IsArray(v) || !v->child)
        return false;
    for (const cJSON *e = v->child; e; e = e->next)
        if (!is(e))
            return false;
    return true;
}

static bool is_string(const cJSON *v)
{
    return cJSON_IsString(v);
}

static bool is_array(const cJSON *v)
{
    return cJSON_IsArray(v);
}

static int count_prompts(turbod_exchange *x, const cJSON *v)
{
    int n = 0;
    if (cJSON_IsString(v) || (cJSON_IsArray(v) && cJSON_IsNumber(v->child)))
        return 1;
    if (!is_list_of(v, is_string) && !is_list_of(v, is_array)) {
        bad_prompt(x, v);
        return 0;
    }
    for (const cJSON *e = v->child; e; e = e->next)
        n++;
    if (n <= TURBOD_MAX_PROMPTS)
        return n;
    turbod_reply_error(x, 400, "invalid_value", "prompt", "%d prompts; at most %d are taken", n,
                       TURBOD_MAX_PROMPTS);
    return 0;
}

static bool read_prompts(turbod_gen *g, const cJSON *v)
{
    turbod_exchange *x = g->x;
    if (cJSON_IsString(v))
        return text_prompt(x, v, &g->prompts[0]);
    if (cJSON_IsNumber(v->child))
        return ids_prompt(x, v, &g->prompts[0]);
    int i = 0;
    for (const cJSON *e = v->child; e; e = e->next, i++)
        if (!(cJSON_IsString(e) ? text_prompt : ids_prompt)(x, e, &g->prompts[i]))
            return false;
    return true;
}

static size_t count_chars(const turbod_buf *b)
{
    size_t n = 0;
    for (size_t i = 0; i < b->len; i++)
        n += ((unsigned char)b->ptr[i] & 0xC0) != 0x80;
    return n;
}

/* The prompt's text in front of a choice: the string as it came, or what the ids stand for. */
static bool echo_prompt(turbod_choice *c, const cJSON *v)
{
    turbod_gen *g = c->gen;
    const turbod_engine_facts *f = turbod_engine_facts_of(g->x->svc->engine);
    const turbod_prompt *p = &g->prompts[c->prompt];
    if (cJSON_IsArray(v) && !cJSON_IsNumber(v->child)) {
        v = v->child;
        for (int i = 0; i < c->prompt; i++)
            v = v->next;
    }
    if (cJSON_IsString(v)) {
        turbod_buf_str(&c->text, v->valuestring);
    } else if (f->tok_vtbl) {
        turbod_detok *d = turbod_detok_new(f->tok_vtbl, f->tok, g->params.keep_special);
        const char *text;
        size_t n;
        for (size_t i = 0; d && i < p->n; i++) {
            turbod_detok_push(d, p->ids[i], &text, &n);
            turbod_buf_add(&c->text, text, n);
        }
        if (d) {
            turbod_detok_flush(d, &text, &n);
            turbod_buf_add(&c->text, text, n);
        } else {
            c->text.failed = true;
        }
        turbod_detok_free(d);
    }
    c->chars = count_chars(&c->text);
    return !c->text.failed;
}

static bool start_completion(turbod_gen *g, const cJSON *body, const cJSON *prompt)
{
    turbod_exchange *x = g->x;
    if (!turbod_choose_by_body(x, body) ||
        !turbod_params_read(x, body, FOR_COMPLETION, &g->params) || !read_prompts(g, prompt) ||
        !turbod_gen_adopt(g))
        return false;
    for (int i = 0; g->params.echo && i < g->n_choices; i++)
        if (!echo_prompt(&g->choices[i], prompt)) {
            turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
            return false;
        }
    return turbod_gen_start(g);
}

void turbod_api_completions(turbod_exchange *x)
{
    cJSON *body = turbod_body_json(x);
    if (!body)
        return;
    const cJSON *prompt = turbod_json_get(body, "prompt");
    int n = count_prompts(x, prompt);
    if (n) {
        turbod_gen *g = turbod_gen_new(x, FOR_COMPLETION, n);
        if (!g)
            turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        else if (!start_completion(g, body, prompt) && !x->gen)
            turbod_gen_free(g);
    }
    cJSON_Delete(body);
}
