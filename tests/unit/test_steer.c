/* tests/unit/test_steer.c: the hooks of running requests, through the engine with the demo model: what they
 * see, what they change, how they fail, and that they hurt nobody else. Environment: srcdir. */
#include "engine_kit.h"

#include <math.h>
#include <time.h>

#include "lua/policies.h"
#include "sched/steer.h"
#include "util/log.h"

static turbod_engine *engine;
static turbod_policy_env env;
static int32_t prompt[64];
static int32_t n_prompt;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static turbod_policy *policy_of(const char *text)
{
    turbo_err err = {{0}};
    turbod_policy *p = NULL;
    if (turbod_policy_compile(text, strlen(text), "test", &env, &p, &err))
        fail_msg("%s: %s", text, err.text);
    return p;
}

static void start_with(result *r, turbod_policy *p, int32_t max, turbo_sample_params asked)
{
    turbo_err err = {{0}};
    turbod_policy_result steered;
    turbod_request_spec spec = ask(prompt, n_prompt, max);
    if (turbod_policy_request(p, &asked, NULL, &steered, &err))
        fail_msg("%s", err.text);
    spec.params = steered.params;
    spec.steer = steered.steer;
    steered.steer = NULL;
    start_spec(engine, r, spec);
    turbod_policy_result_free(&steered);
}

/* Runs a script on the fixed prompt to its end. */
static void run(const char *text, int32_t max, result *r)
{
    turbod_policy *p = policy_of(text);
    start_with(r, p, max, greedy());
    turbod_policy_free(p); /* the request keeps its own */
    finish(r);
}

static void plain(int32_t max, result *r)
{
    turbo_sample_params p = greedy();
    start(engine, r, prompt, n_prompt, max, &p);
    finish(r);
}

static void test_token(void **state)
{
    result base, r;
    (void)state;
    plain(20, &base);
    /* A hook that does nothing changes nothing. */
    run("turbo.policy{ token = function() end, logits = function() end }", 20, &r);
    same_answer(&base, &r);
    run("turbo.policy{ token = function(req, tok) assert(tok.index == req.n_output) "
        "assert(tok.id >= 0 and type(tok.text) == 'string' and tok.logprob <= 0) "
        "req.state.n = (req.state.n or 0) + 1 "
        "if req.state.n == 7 then req:stop() end end }",
        20, &r);
    assert_int_equal(r.n, 7);
    assert_int_equal(r.end.kind, TURBOD_EV_DONE);
    assert_int_equal(r.end.finish, TURBOD_FINISH_STOP);
    assert_memory_equal(r.ids, base.ids, 7 * sizeof(int32_t));
}

/* Text that is put in stands in the answer, and the model goes on behind it. */
static void test_inject(void **state)
{
    static const char words[] = " and a blue elephant";
    result r;
    int32_t *ids, found = 0;
    size_t n;
    turbo_err err;
    (void)state;
    assert_int_equal(turbod_encode_text(env.tok_vtbl, env.tok, words, sizeof words - 1, false, true,
                                        &ids, &n, &err),
                     0);
    run("turbo.policy{ token = function(req, tok) if tok.index == 3 then "
        "req:inject(' and a blue elephant') end end }",
        16, &r);
    assert_int_equal(r.n, 16);
    for (size_t i = 0; i < n; i++)
        found += r.ids[3 + i] == ids[i];
    assert_int_equal(found, n);
    free(ids);
    run("turbo.policy{ token = function(req) req:inject(('elephant '):rep(400)) end }", 16, &r);
    assert_int_equal(r.end.status, TURBO_EINVAL);
    assert_non_null(strstr(r.message, "256 tokens"));
}

static void test_logits(void **state)
{
    result base, r;
    (void)state;
    plain(12, &base);
    run("local set = turbo.tokens{ 300, 301, 302 } turbo.policy{ logits = function(req, lg) "
        "lg:allow(set) end }",
        12, &r);
    for (int i = 0; i < 12; i++)
        assert_in_range(r.ids[i], 300, 302);
    /* The tape is for one token. */
    char text[256];
    snprintf(
        text, sizeof text,
        "turbo.policy{ logits = function(req, lg) if req.n_output == 0 then lg:ban{%d} end end }",
        base.ids[0]);
    run(text, 12, &r);
    assert_int_not_equal(r.ids[0], base.ids[0]);
    /* Peeking: the best is what greedy takes; probabilities are the model's. */
    run("turbo.policy{ logits = function(req, lg) local best = lg:topk(5) assert(#best == 5) "
        "local p = math.exp(best[1].logprob) assert(math.abs(p - lg:prob(best[1].id)) < 1e-9) "
        "assert(best[1].logprob >= best[2].logprob) local h = lg:entropy() assert(h >= 0 and h < "
        "12) "
        "req.state.best = best[1].id end, "
        "token = function(req, tok) assert(tok.id == req.state.best) end }",
        12, &r);
    same_answer(&base, &r);
    /* A view that was kept is dead outside its hook. */
    run("local kept turbo.policy{ logits = function(req, lg) kept = lg end, "
        "token = function() kept:topk(1) end }",
        12, &r);
    assert_int_equal(r.end.status, TURBO_EINVAL);
    assert_non_null(strstr(r.message, "during the logits hook"));
}

static void test_switch(void **state)
{
    result base, r;
    char text[512];
    (void)state;
    plain(20, &base);
    snprintf(text, sizeof text,
             "local no = turbo.chain():ban{%d, %d, %d} turbo.policy{ token = function(req, tok) "
             "if tok.index == 5 then req:switch(no) end end }",
             base.ids[5], base.ids[6], base.ids[7]);
    run(text, 20, &r);
    assert_memory_equal(r.ids, base.ids, 5 * sizeof(int32_t));
    for (int i = 5; i < 20; i++)
        for (int k = 5; k < 8; k++)
            assert_int_not_equal(r.ids[i], base.ids[k]);
    /* A chain of steps in another order than the sampler's is a program; this one is greedy too. */
    run("turbo.policy(turbo.chain():top_k(1):temperature(0.5))", 20, &r);
    same_answer(&base, &r);
}

/* Each failure ends one request, by name; with "skip" the request goes on as if there were no hook. */
static void test_failures(void **state)
{
    static const struct {
        const char *body;
        turbo_status status;
        const char *text;
    } rows[] = {
        {"logits = function(req, lg) lg:allow{} end", TURBO_EINVAL, "bans every token"},
        {"logits = function(req, lg) lg:ban(turbo.tokens.matching('')) end", TURBO_EINVAL, "1 to"},
        {"token = function() error('enough') end", TURBO_EINVAL, "enough"},
        {"token = function() return nil + 1 end", TURBO_EINVAL, "test.lua:1:"},
        {"token = function() while true do end end", TURBO_ELIMIT, "script limit"},
        {"logits = function() local t = {} while true do t = {t} end end", TURBO_ELIMIT, ""},
        {"logits = function(req) req.temperature = 1 end", TURBO_EINVAL, "fixed once"},
        {"logits = function(req) req:use(turbo.chain()) end", TURBO_EINVAL, "request hook"},
        {"logits = function(req, lg) lg:temperature('hot') end", TURBO_EINVAL, "number"},
        {"logits = function(req, lg) for i = 1, 33 do lg:scale(1) end end", TURBO_EINVAL,
         "at most 32"},
        {"logits = function(req, lg) req:stop() end", TURBO_EINVAL, "req:stop is for"},
    };
    result base, other, r;
    char text[512];
    (void)state;
    plain(24, &base);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbo_sample_params p = greedy();
        snprintf(text, sizeof text, "turbo.policy{ %s }", rows[i].body);
        turbod_policy *policy = policy_of(text);
        start(engine, &other, prompt, n_prompt, 24, &p);
        start_with(&r, policy, 24, greedy());
        turbod_policy_free(policy);
        finish(&r);
        finish(&other);
        same_answer(&base, &other);
        if (r.end.kind != TURBOD_EV_ERROR || r.end.status != rows[i].status ||
            !strstr(r.message, rows[i].text))
            fail_msg("%s: status %d, \"%s\"", text, r.end.status, r.message);
        if (!strstr(rows[i].body,
                    "allow{}")) { /* nothing left to draw from is not the script's error */
            snprintf(text, sizeof text, "turbo.policy{ on_error = 'skip', %s }", rows[i].body);
            run(text, 24, &r);
            same_answer(&base, &r);
        }
    }
    all_blocks_back(engine);
}

/* The finish hook runs once, however a request ends: five that take too long switch the policy off. */
static void test_finish(void **state)
{
    turbod_policy *p = policy_of("turbo.policy{ finish = function(req, e) assert(e.reason == "
                                 "'length' or e.reason == 'abort') "
                                 "assert(e.n_output == req.n_output) while true do end end }");
    turbod_policy_result out;
    turbo_err err;
    turbo_sample_params asked = greedy();
    result r;
    (void)state;
    for (int i = 0; i < 5; i++) {
        start_with(&r, p, i < 3 ? 4 : 400, greedy());
        if (i >= 3)
            turbod_request_cancel(r.req);
        finish(&r);
        assert_int_equal(r.terminal, 1);
    }
    assert_int_equal(turbod_policy_request(p, &asked, NULL, &out, &err), TURBO_ELIMIT);
    assert_non_null(strstr(err.text, "switched off"));
    turbod_policy_result_free(&out);
    turbod_policy_free(p);
}

/* The scripts that try to leave the sandbox, each inside a token hook. */
static void test_hostile(void **state)
{
    char path[4096], line[1024], text[1200];
    const char *src = getenv("srcdir");
    double slowest = 0;
    result base, r;
    int n = 0;
    (void)state;
#if defined(__SANITIZE_THREAD__)
    skip(); /* it loses count of stack frames over the library's longjmp */
#endif
    plain(4, &base);
    snprintf(path, sizeof path, "%s/tests/lua/hostile.txt", src && *src ? src : ".");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        char *script = strchr(line, ' ');
        turbo_err err;
        turbod_policy *p = NULL;
        line[strcspn(line, "\n")] = '\0';
        if (line[0] == '#' || !script)
            continue;
        snprintf(text, sizeof text,
                 "turbo.policy{ on_error = 'skip', token = function(...)%s end }", script);
        if (turbod_policy_compile(text, strlen(text), "hostile", &env, &p, &err))
            continue; /* refused when it is loaded */
        double t = now_ms();
        start_with(&r, p, 4, greedy());
        turbod_policy_free(p);
        finish(&r);
        t = now_ms() - t;
        slowest = t > slowest ? t : slowest;
        same_answer(&base, &r);
        n++;
    }
    fclose(f);
    assert_true(n >= 70);
    print_message("%d hostile hooks, slowest request of 4 tokens %.1f ms\n", n, slowest);
}

/* ---- the scripts that ship -------------------------------------------------------------------------- */

static turbod_policy *shipped(const char *name)
{
    char path[4096];
    const char *src = getenv("srcdir");
    turbo_err err = {{0}};
    turbod_policy *p = NULL;
    snprintf(path, sizeof path, "%s/scripts/sampling/%s.lua", src && *src ? src : ".", name);
    if (turbod_policy_load(path, name, &env, &p, &err))
        fail_msg("%s", err.text);
    return p;
}

/* A run of a shipped policy, of which the tests below play the engine; or one through the engine. */
static void open_shipped(const char *name, const char *args, turbod_policy_result *out)
{
    turbo_err err = {{0}};
    turbo_sample_params asked = greedy();
    asked.temperature = 1;
    cJSON *a = args ? cJSON_Parse(args) : NULL;
    turbod_policy *p = shipped(name);
    if (turbod_policy_request(p, &asked, a, out, &err))
        fail_msg("%s: %s", name, err.text);
    turbod_policy_free(p);
    cJSON_Delete(a);
}

static void run_shipped(const char *name, const char *args, int32_t max, result *r)
{
    turbod_policy_result steered;
    turbod_request_spec spec = ask(prompt, n_prompt, max);
    open_shipped(name, args, &steered);
    spec.params = steered.params;
    spec.steer = steered.steer;
    steered.steer = NULL;
    start_spec(engine, r, spec);
    turbod_policy_result_free(&steered);
    finish(r);
}

static void text_of(const result *r, char *text, size_t cap)
{
    turbod_detok *d = turbod_detok_new(env.tok_vtbl, env.tok, false);
    size_t n = 0;
    text[0] = '\0';
    for (int i = 0; i < r->n; i++) {
        const char *t;
        size_t len;
        turbod_detok_push(d, r->ids[i], &t, &len);
        if (n + len < cap)
            memcpy(text + n, t, len), text[n += len] = '\0';
    }
    turbod_detok_free(d);
}

static void test_think_budget(void **state)
{
    char text[1024];
    result r;
    (void)state;
    run_shipped("think_budget", "{\"budget\": 6, \"close\": \" and that is all I thought.\"}", 40,
                &r);
    text_of(&r, text, sizeof text);
    const char *at = strstr(text, " and that is all I thought.\n");
    assert_non_null(at);
    assert_true(at > text && strlen(at) > 30); /* behind six tokens, and the model goes on */
    assert_int_equal(r.n, 40);
}

static void test_choice(void **state)
{
    char text[1024];
    result r;
    (void)state;
    for (int i = 0; i < 4; i++) {
        run_shipped("choice",
                    i % 2 ? "{\"options\": [\"a red apple\", \"a blue boat\", \"nothing\"]}"
                          : "{\"options\": [\"forty-two\"]}",
                    40, &r);
        text_of(&r, text, sizeof text);
        const char *t = text[0] == ' ' ? text + 1 : text;
        if (i % 2 ? strcmp(t, "a red apple") && strcmp(t, "a blue boat") && strcmp(t, "nothing")
                  : strcmp(t, "forty-two"))
            fail_msg("\"%s\"", text);
        assert_int_equal(r.end.finish, TURBOD_FINISH_STOP);
    }
}

static void test_lively(void **state)
{
    turbod_policy_result o;
    result r;
    (void)state;
    open_shipped("lively", NULL, &o);
    static const int32_t kinds[] = {TURBO_STEP_DRY, TURBO_STEP_MIN_P, TURBO_STEP_TEMPERATURE,
                                    TURBO_STEP_XTC};
    assert_int_equal(o.params.n_program, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(o.params.program[i].kind, kinds[i]);
    assert_true(o.params.program[0].n_ids >= 4);
    assert_null(o.steer);
    turbod_policy_result_free(&o);
    run_shipped("lively", NULL, 30, &r);
    assert_int_equal(r.end.kind, TURBOD_EV_DONE);
    assert_int_equal(r.n, 30);
}

/* One token of a text that the test says. True: the policy ended the answer. */
static bool say(turbod_steer *s, const char *text)
{
    static float logits[8192];
    turbod_event ev = {.kind = TURBOD_EV_TOKEN};
    turbo_sample_params p = greedy();
    turbo_err err = {{0}};
    bool stop = false;
    assert_int_equal(s->draw(s, logits, &p, &err), TURBO_OK);
    if (s->token(s, &ev, text, strlen(text), &stop, &err))
        fail_msg("%s", err.text);
    return stop;
}

static double warmth_now(turbod_steer *s)
{
    static float logits[8192];
    turbo_sample_params p = greedy();
    turbo_err err;
    p.temperature = 0.8f;
    assert_int_equal(s->draw(s, logits, &p, &err), TURBO_OK);
    for (int32_t i = 0; i < p.n_program; i++)
        if (p.program[i].kind == TURBO_STEP_TEMPERATURE)
            return (double)p.program[i].a;
    return (double)p.temperature;
}

static void test_tool_call(void **state)
{
    turbod_policy_result o;
    (void)state;
    open_shipped("tool_call", NULL, &o);
    assert_true(fabs((double)o.params.temperature - 0.8) < 1e-6);
    say(o.steer, "I look it up: `");
    assert_true(warmth_now(o.steer) > 0.7);
    say(o.steer, "``"); /* the mark in two tokens */
    assert_true(warmth_now(o.steer) < 1e-9);
    say(o.steer, "{\"tool\": 1}");
    assert_true(warmth_now(o.steer) < 1e-9);
    say(o.steer, "```");
    assert_true(warmth_now(o.steer) > 0.7);
    assert_false(say(o.steer, "\nAgain.\nAga"));
    assert_false(say(o.steer, "in.\nAgain.\n"));
    assert_true(say(o.steer, "Again.\n"));
    turbod_policy_result_free(&o);
}

static int set_up(void **state)
{
    char dir[4096];
    const char *src = getenv("srcdir");
    int32_t *ids;
    size_t n;
    turbo_err err;
    (void)state;
    static const char text[] = "Tell me a short story about a small boat.";
    turbod_log_level(-1); /* failures are expected here */
    snprintf(dir, sizeof dir, "%s/conf/models/internlm2-demo", src && *src ? src : ".");
    turbod_engine_opts o = small();
    o.cache_bytes = 64 << 20;
    engine = open_engine(dir, o);
    const turbod_engine_facts *f = turbod_engine_facts_of(engine);
    env = (turbod_policy_env){.tok_vtbl = f->tok_vtbl, .tok = f->tok, .vocab = f->model.vocab};
    if (turbod_encode_text(env.tok_vtbl, env.tok, text, sizeof text - 1, true, false, &ids, &n,
                           &err))
        return -1;
    n_prompt = (int32_t)(n < 64 ? n : 64);
    memcpy(prompt, ids, (size_t)n_prompt * sizeof *ids);
    free(ids);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    turbod_engine_close(engine);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token),     cmocka_unit_test(test_inject),
        cmocka_unit_test(test_logits),    cmocka_unit_test(test_switch),
        cmocka_unit_test(test_failures),  cmocka_unit_test(test_finish),
        cmocka_unit_test(test_hostile),   cmocka_unit_test(test_think_budget),
        cmocka_unit_test(test_choice),    cmocka_unit_test(test_lively),
        cmocka_unit_test(test_tool_call),
    };
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], set_up, tear_down);
}
