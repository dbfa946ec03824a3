/* core/cli/policy.c: turbo policy list | load | test: sampling policies of a folder, of a server, and one of
 * them step by step. Main thread; the trace is written by the engine thread. */
#include <stdlib.h>
#include <string.h>

#include "cli/remote.h"
#include "lua/policies.h"
#include "lua/sandbox.h"
#include "plugin/host.h"
#include "sched/steer.h"
#include "util/err.h"
#include "util/json.h"

static const cli_flag flags[] = {
    CLI_SAMPLING_FLAGS,
    {"prompt", CLI_TEXT, "TEXT", "test: the prompt, as a chat message.", 0, 0},
    {"args", CLI_TEXT, "JSON", "test: policy_args, an object.", 0, 0},
    {"quiet", CLI_SWITCH, "", "test: the answer alone, no trace.", 0, 0},
    {"api-key", CLI_TEXT, "KEY", "Admin key of the server. Default: $TURBO_API_KEY.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

/* ---- a server -------------------------------------------------------------------------------------- */

/* body NULL: GET, else PUT. *reply is the caller's, cJSON_Delete. */
static turbo_status ask(const cli_args *a, const char *server, const char *path, const char *body,
                        cJSON **reply, turbo_err *err)
{
    cli_remote r;
    long status = 0;
    turbo_status st = cli_remote_open(&r, a, server, (size_t)4 << 20, err);
    if (!st) {
        cli_remote_prepare(&r, path, body);
        curl_easy_setopt(r.curl, CURLOPT_TIMEOUT, 60L);
        if (body)
            curl_easy_setopt(r.curl, CURLOPT_CUSTOMREQUEST, "PUT");
        st = cli_remote_perform(&r, &status, err);
    }
    if (!st && status / 100 != 2)
        st = cli_remote_refused(&r, status, err);
    if (!st)
        st = turbod_json_parse(r.body.ptr, r.body.len, &turbod_json_request, reply, err);
    cli_remote_close(&r);
    return st;
}

static bool is_url(const char *where)
{
    return strstr(where, "://") || (strchr(where, ':') && !strchr(where, '/'));
}

static const char *text_of(const cJSON *row, const char *key)
{
    const cJSON *v = turbod_json_get(row, key);
    return cJSON_IsString(v) ? v->valuestring : "?";
}

static turbo_status list_server(const cli_args *a, const char *server, turbo_err *err)
{
    cJSON *j = NULL;
    const cJSON *row;
    turbo_status st = ask(a, server, "/v1/policies", NULL, &j, err);
    if (st)
        return st;
    cJSON_ArrayForEach(row, turbod_json_get(j, "data"))
        printf("%-24s %-5s %s\n", text_of(row, "name"), text_of(row, "origin"),
               text_of(row, "hooks"));
    cJSON_Delete(j);
    return TURBO_OK;
}

static turbo_status load(const cli_args *a, const char *server, const char *name, const char *file,
                         turbo_err *err)
{
    char path[160];
    char *source = NULL;
    size_t len = 0;
    cJSON *j = NULL;
    turbod_buf body;
    if (!turbod_policies_name_ok(name))
        return turbod_err(err, TURBOD_EUSAGE,
                          "the name of a policy has 1 to 64 of a-z, 0-9, '_' and '-'");
    turbo_status st = turbod_script_read(file, &source, &len, err);
    if (st)
        return st;
    turbod_buf_init(&body, (size_t)1 << 20);
    turbod_buf_str(&body, "{\"source\":\"");
    turbod_buf_json(&body, source, len);
    turbod_buf_str(&body, "\"}");
    snprintf(path, sizeof path, "/v1/policies/%s", name);
    st = body.failed ? turbod_err(err, TURBO_ENOMEM, "no memory for the script")
                     : ask(a, server, path, body.ptr, &j, err);
    if (!st)
        printf("%s: %s\n", name, text_of(j, "hooks"));
    cJSON_Delete(j);
    turbod_buf_free(&body);
    free(source);
    return st;
}

/* ---- a folder -------------------------------------------------------------------------------------- */

/* Scripts may ask for the tokenizer: that of --model, which alone is opened. */
static turbo_status list_folder(const cli_args *a, const char *dir, turbo_err *err)
{
    turbod_policies *set = NULL;
    turbod_registry *plugins = NULL;
    turbod_policy_env env = {0};
    void *tok = NULL;
    turbod_buf b;
    cJSON *j = NULL;
    const cJSON *row;
    turbo_status st = TURBO_OK;
    if (*a->conf->model) {
        st = turbod_registry_open(turbod_plugin_path(a->conf->plugin_path), &plugins, err);
        if (!st)
            st = turbod_registry_tokenizer_for(plugins, a->conf->model, &env.tok_vtbl, err);
        if (!st)
            st = env.tok_vtbl->open(turbod_host_table(), a->conf->model, &tok, err);
        env.tok = tok;
    }
    if (!st)
        st = turbod_policies_load(dir, &env, &set, err);
    if (st) {
        if (!*a->conf->model && strstr(err->text, "no tokenizer"))
            st = turbod_err(err, st, "a script here needs a tokenizer; give --model DIR");
        goto out;
    }
    turbod_buf_init(&b, (size_t)1 << 20);
    turbod_policies_json(set, false, &b);
    st = turbod_json_parse(b.ptr, b.len, &turbod_json_request, &j, err);
    cJSON_ArrayForEach(row, j) printf("%-24s %s\n", text_of(row, "name"), text_of(row, "hooks"));
    cJSON_Delete(j);
    turbod_buf_free(&b);
out:
    turbod_policies_free(set);
    if (tok)
        env.tok_vtbl->close(tok);
    turbod_registry_close(plugins);
    return st;
}

/* ---- a policy step by step --------------------------------------------------------------------------- */

/* Between the engine and the policy's own steer: prints what goes by. */
typedef struct trace {
    turbod_steer steer; /* first: the engine's view of it */
    turbod_steer *inner; /* NULL: a chain alone */
    turbo_sample_step steps[64];
    int32_t n;
} trace;

static void print_step(const turbo_sample_step *s)
{
    printf(" %s(", turbod_policy_step_name(s->kind));
    if (s->a < 0 || s->a > 0 || s->kind == TURBO_STEP_TEMPERATURE)
        printf("%g", (double)s->a);
    if (s->b < 0 || s->b > 0 || s->c < 0 || s->c > 0)
        printf(", %g, %g", (double)s->b, (double)s->c);
    if (s->n)
        printf("%s%d", s->a > 0 ? ", " : "", s->n);
    if (s->n_ids == 1)
        printf("%stoken %d", s->a < 0 || s->a > 0 ? ", " : "", s->ids[0]);
    else if (s->n_ids)
        printf("%s%d tokens", s->a < 0 || s->a > 0 ? ", " : "", s->n_ids);
    putchar(')');
}

static turbo_status trace_draw(turbod_steer *s, const float *logits, turbo_sample_params *p,
                               turbo_err *err)
{
    trace *t = (trace *)(void *)s;
    turbo_status st =
        t->inner && t->inner->draw ? t->inner->draw(t->inner, logits, p, err) : TURBO_OK;
    for (t->n = 0; !st && t->n < p->n_program && t->n < 64; t->n++)
        t->steps[t->n] = p->program[t->n];
    return st;
}

static turbo_status trace_token(turbod_steer *s, const turbod_event *ev, const char *text,
                                size_t len, bool *stop, turbo_err *err)
{
    trace *t = (trace *)(void *)s;
    printf("%7d ", ev->token);
    cli_put_json(stdout, text, len);
    for (int32_t i = 0; i < t->n; i++)
        print_step(&t->steps[i]);
    turbo_status st = t->inner && t->inner->token
                          ? t->inner->token(t->inner, ev, text, len, stop, err)
                          : TURBO_OK;
    puts(*stop ? " stop" : "");
    return st;
}

static void trace_finish(turbod_steer *s, const turbod_event *ev)
{
    trace *t = (trace *)(void *)s;
    if (t->inner && t->inner->finish)
        t->inner->finish(t->inner, ev);
}

static void trace_free(turbod_steer *s)
{
    trace *t = (trace *)(void *)s;
    if (t->inner)
        t->inner->free(t->inner);
    free(t);
}

static turbod_steer *traced(turbod_steer *inner)
{
    trace *t = calloc(1, sizeof *t);
    if (!t)
        return inner;
    t->inner = inner;
    t->steer = (turbod_steer){.draw = trace_draw,
                              .token = trace_token,
                              .finish = trace_finish,
                              .free = trace_free};
    return &t->steer;
}

static turbo_status run_policy(cli_args *a, turbod_service *s, turbod_policy *policy,
                               turbo_err *err)
{
    const char *prompt = cli_text(a, "prompt"), *given = cli_text(a, "args");
    const turbod_message m = {.role = "user", .content = prompt, .content_len = strlen(prompt)};
    const turbod_render_opts opts = {.add_generation_prompt = true};
    turbod_policy_result steered = {0}, none;
    turbod_request_spec spec = {.stop_ids = s->stop_ids, .n_stop_ids = s->n_stop_ids};
    int32_t *ids = NULL;
    size_t n = 0;
    cJSON *args = NULL;
    cli_answer an;
    turbod_slots no_images = {0};
    turbo_status st = turbod_service_prompt(s, &m, 1, &opts, &ids, &n, &no_images, err);
    spec.prompt = ids;
    spec.n_prompt = (int32_t)n;
    if (!st && given)
        st = turbod_json_parse(given, strlen(given), &turbod_json_request, &args, err);
    if (!st)
        st = cli_sampling(a, s, &spec, &none, err);
    if (!st)
        st = turbod_policy_request(policy, &spec.params, args, &steered, err);
    if (!st) {
        bool quiet = cli_given(a, "quiet");
        spec.params = steered.params;
        spec.steer = quiet ? steered.steer : traced(steered.steer);
        steered.steer = NULL;
        st = cli_generate(s, &spec, quiet ? stdout : NULL, &an, err);
        if (!quiet)
            printf("%.*s", (int)an.text.len, an.text.ptr ? an.text.ptr : "");
        putchar('\n');
        cli_answer_free(&an);
    }
    turbod_policy_result_free(&steered);
    cJSON_Delete(args);
    free(ids);
    return st;
}

static turbo_status test(cli_args *a, const char *file, turbo_err *err)
{
    turbod_service s;
    turbod_policy *policy = NULL;
    if (!cli_given(a, "prompt"))
        return turbod_err(err, TURBOD_EUSAGE, "test needs --prompt TEXT and --model DIR");
    a->n_words = 0; /* the model comes from --model */
    turbo_status st = cli_open_model(a, &s, true, err);
    if (st)
        return st;
    cli_catch_interrupts();
    const turbod_policy_env env = turbod_service_policy_env(&s);
    st = turbod_policy_load(file, "test", &env, &policy, err);
    if (!st)
        st = run_policy(a, &s, policy, err);
    turbod_policy_free(policy);
    turbod_service_close(&s);
    return st;
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    turbo_status st;
    const char *what = a->words[0];
    if (!strcmp(what, "list") && a->n_words <= 2) {
        char shipped[4200];
        snprintf(shipped, sizeof shipped, "%.4096s/sampling", turbod_data_dir());
        const char *where = a->n_words == 2      ? a->words[1]
                            : *a->conf->policies ? a->conf->policies
                                                 : shipped;
        st = is_url(where) ? list_server(a, where, &err) : list_folder(a, where, &err);
    } else if (!strcmp(what, "load") && a->n_words == 4) {
        st = load(a, a->words[1], a->words[2], a->words[3], &err);
    } else if (!strcmp(what, "test") && a->n_words == 2) {
        st = test(a, a->words[1], &err);
    } else {
        return cli_usage("usage: turbo policy %s", a->cmd->words);
    }
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_policy = {
    .name = "policy",
    .words =
        "list [FOLDER | URL] | load URL NAME FILE.lua | test FILE.lua --model DIR --prompt TEXT",
    .summary = "Lists sampling policies, gives one to a server, or runs one step by step.",
    .about =
        "test prints each token of the answer with the sampling steps that chose it. load needs an "
        "admin\n"
        "key where the server has keys; the policy is there for the next request. For a server\n"
        "--model is the name of one of its models; default: its first.\n",
    .flags = flags,
    .keys = "model chat_template plugin_path policies log_level model_format quantize "
            "allow_nonfinite engine",
    .min_words = 1,
    .max_words = 4,
    .run = run,
};
