/* core/net/chat.c: POST /v1/chat/completions, and what bodies of all routes share. Workers. */
#include <string.h>

#include "net/gen.h"
#include "util/json.h"

cJSON *turbod_body_json(turbod_exchange *x)
{
    cJSON *body = NULL;
    turbo_err err = {{0}};
    turbo_status st = turbod_json_parse(x->body.len ? x->body.ptr : "", x->body.len,
                                        &turbod_json_request, &body, &err);
    if (st == TURBO_ENOMEM) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this body; try again");
    } else if (st) {
        turbod_reply_error(x, 400, "invalid_json", NULL, "the body is not acceptable JSON: %s",
                           err.text);
    } else if (!cJSON_IsObject(body)) {
        turbod_reply_error(x, 400, "invalid_json", NULL, "the body is %s; send a JSON object",
                           turbod_json_kind(body));
        cJSON_Delete(body);
        return NULL;
    }
    return st ? NULL : body;
}

bool turbod_choose_by_body(turbod_exchange *x, const cJSON *body)
{
    const cJSON *v = turbod_json_get(body, "model");
    const turbod_services *all = x->http->models;
    if (!v || cJSON_IsNull(v))
        return turbod_model_ready(x);
    for (size_t i = 0; cJSON_IsString(v) && i < all->n; i++)
        if (!strcmp(v->valuestring, all->at[i].name)) {
            x->svc = &all->at[i];
            return turbod_model_ready(x);
        }
    if (!cJSON_IsString(v))
        turbod_reply_error(x, 400, "invalid_value", "model", "model is %s; give \"%s\"",
                           turbod_json_kind(v), x->svc->name);
    else if (all->n == 1)
        turbod_reply_error(x, 404, "model_not_found", "model",
                           "this model is not served here; \"%s\" is", x->svc->name);
    else
        turbod_reply_error(x, 404, "model_not_found", "model",
                           "this model is not served here; GET /v1/models lists the %zu that are",
                           all->n);
    return false;
}

/* Messages to prompt ids, into the one prompt of g. */
static bool make_prompt(turbod_gen *g, const turbod_messages *m)
{
    turbod_exchange *x = g->x;
    turbo_err err = {{0}};
    turbod_render_opts opts = {.add_generation_prompt = g->params.add_generation_prompt,
                               .continue_final_message = g->params.continue_final};
    turbo_status st = turbod_service_prompt(x->svc, m->v, m->n, &opts, &g->prompts[0].ids,
                                            &g->prompts[0].n, &g->prompts[0].slots, &err);
    if (!st)
        return true;
    if (st == TURBO_ELIMIT)
        turbod_reply_error(x, 400, "context_length_exceeded", "messages",
                           "the conversation is too long to become a prompt");
    else
        turbod_reply_status(x, st, "messages", &err);
    return false;
}

static bool start_chat(turbod_gen *g, const cJSON *body)
{
    turbod_exchange *x = g->x;
    turbod_messages m = {0};
    bool ok = turbod_choose_by_body(x, body) && turbod_params_read(x, body, FOR_CHAT, &g->params);
    const turbod_service *svc = x->svc;
    if (ok && !__atomic_load_n(&svc->chat, __ATOMIC_ACQUIRE)) {
        turbod_reply_error(x, 400, "no_chat_template", NULL,
                           "this model has no chat template; use POST /v1/completions");
        ok = false;
    }
    /* Continuing the last message and opening a new one exclude each other; the former was asked
     * for, the latter is only the default. */
    if (ok && g->params.continue_final) {
        const cJSON *given = turbod_json_get(body, "add_generation_prompt");
        if (given && cJSON_IsTrue(given)) {
            turbod_reply_error(x, 400, "invalid_value", "continue_final_message",
                               "continue_final_message and add_generation_prompt exclude each "
                               "other");
            ok = false;
        }
        g->params.add_generation_prompt = false;
    }
    ok = ok && turbod_messages_read(x, turbod_json_get(body, "messages"), &g->params.warnings, &m);
    ok = ok && make_prompt(g, &m);
    turbod_messages_free(&m);
    return ok && turbod_gen_adopt(g) && turbod_gen_start(g);
}

void turbod_api_chat(turbod_exchange *x)
{
    cJSON *body = turbod_body_json(x);
    if (!body)
        return;
    turbod_gen *g = turbod_gen_new(x, FOR_CHAT, 1);
    if (!g)
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
    else if (!start_chat(g, body) && !x->gen)
        turbod_gen_free(g);
    cJSON_Delete(body);
}
