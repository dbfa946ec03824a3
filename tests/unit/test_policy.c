/* tests/unit/test_policy.c: sampling policies: what they set, how they are refused, how they fail,
 * and the ones that ship. Environment: srcdir, the source folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lua/policies.h"
#include "util/log.h"

static char folder[64];

static void neutral(turbo_sample_params *p)
{
    *p = (turbo_sample_params){
        .size = sizeof *p, .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
}

static const char *source_dir(void)
{
    const char *s = getenv("srcdir");
    return s && *s ? s : ".";
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static turbo_status load_text(const char *text, turbod_policy **out, turbo_err *err)
{
    char path[128];
    snprintf(path, sizeof path, "%s/test.lua", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return turbod_policy_load(path, "test", NULL, out, err);
}

/* What the policy makes of p, without program and hooks. */
static turbo_status run_on(turbod_policy *policy, turbo_sample_params *p, const cJSON *args,
                           turbo_err *err)
{
    turbod_policy_result r;
    turbo_status st = turbod_policy_request(policy, p, args, &r, err);
    *p = r.params;
    p->program = NULL; /* goes with r */
    turbod_policy_result_free(&r);
    return st;
}

static turbo_status ask(const char *text, const char *args, turbo_sample_params *p, turbo_err *err)
{
    turbod_policy *policy = NULL;
    turbo_status st = load_text(text, &policy, err);
    if (st)
        fail_msg("%s: %s", text, err->text);
    cJSON *a = args ? cJSON_Parse(args) : NULL;
    neutral(p);
    st = run_on(policy, p, a, err);
    cJSON_Delete(a);
    turbod_policy_free(policy);
    return st;
}

static bool near(float a, double b)
{
    return (double)a > b - 1e-6 && (double)a < b + 1e-6;
}

static void test_policy_sets(void **state)
{
    turbo_err err = {{0}};
    turbo_sample_params p;
    (void)state;
    assert_int_equal(ask("turbo.policy(turbo.chain():temperature(0))", NULL, &p, &err), TURBO_OK);
    assert_true(near(p.temperature, 0));
    assert_int_equal(ask("turbo.policy{ chain = turbo.chain():penalize{rep=1.1, freq=0.5, pres=-1}"
                         ":temperature(0.7):top_k(40):top_p(0.9):min_p(0.05) }",
                         NULL, &p, &err),
                     0);
    assert_true(near(p.temperature, 0.7) && near(p.top_p, 0.9) && near(p.min_p, 0.05));
    assert_true(near(p.repetition_penalty, 1.1) && near(p.frequency_penalty, 0.5));
    assert_true(near(p.presence_penalty, -1) && p.top_k == 40);
    assert_int_equal(ask("turbo.policy{ request = function(req) "
                         "req.temperature = req.temperature / 2; req.seed = 99; req.top_k = 7.0; "
                         "req.min_tokens = req.args.least end }",
                         "{\"least\": 3}", &p, &err),
                     0);
    assert_true(near(p.temperature, 0.5) && p.seed == 99 && p.top_k == 7 && p.min_tokens == 3);
    /* The chain comes first, the hook sees its result and what was asked for. */
    assert_int_equal(
        ask("turbo.policy{ chain = turbo.chain():temperature(0.3), request = function(req)"
            " assert(req.asked.temperature == 1 and req.policy == 'test') "
            "req.top_p = req.temperature end }",
            NULL, &p, &err),
        0);
    assert_true(near(p.top_p, 0.3) && near(p.temperature, 0.3));
    assert_int_equal(ask("local base = turbo.chain():temperature(0.3) local hot = base:top_p(0.5) "
                         "turbo.policy{ request = function(req) req:use(base) end }",
                         NULL, &p, &err),
                     0);
    assert_true(near(p.top_p, 1) && near(p.temperature, 0.3));
    /* init runs in the same state, before. */
    assert_int_equal(ask("local t turbo.policy{ init = function(c) t = #c.name end, "
                         "request = function(req) req.top_k = t end }",
                         NULL, &p, &err),
                     0);
    assert_int_equal(p.top_k, 4);
    /* Reproducible randomness. */
    turbo_sample_params q;
    static const char dice[] = "turbo.policy{ request = function(req) local u = req:random() "
                               "assert(u >= 0 and u < 1) req.top_k = req:random(1, 1000000) end }";
    assert_int_equal(ask(dice, NULL, &p, &err), 0);
    assert_int_equal(ask(dice, NULL, &q, &err), 0);
    assert_true(p.top_k == q.top_k && p.top_k >= 1);
}

/* A policy without hooks runs no script for a request; one with an idle hook does, and makes the same. */
static void test_policy_fixed(void **state)
{
    static const char *const chains[] = {
        "turbo.chain():temperature(0.7):top_k(40):top_p(0.9)",
        "turbo.chain():penalize{rep=1.1}:temperature(0)",
        "turbo.chain():top_p(0.9):temperature(0.5):top_k(3)",
        "turbo.chain():ban{5, 9}:add({7}, 1.5):penalize{freq=0.5, "
        "last_n=8}:min_p(0.1):scale(2):ban{2}",
        "turbo.chain()",
    };
    (void)state;
    for (size_t i = 0; i < sizeof chains / sizeof chains[0]; i++) {
        char text[400];
        turbod_policy *policy[2];
        turbod_policy_result r[2];
        turbo_sample_params p;
        turbo_err err = {{0}};
        neutral(&p);
        p.seed = 77;
        p.frequency_penalty = 0.25f;
        for (int k = 0; k < 2; k++) {
            snprintf(text, sizeof text, "turbo.policy{ chain = %s%s }", chains[i],
                     k ? ", request = function() end" : "");
            if (load_text(text, &policy[k], &err))
                fail_msg("%s: %s", text, err.text);
            for (int again = 0; again < 2; again++) { /* the first one's program is its own */
                if (again)
                    turbod_policy_result_free(&r[k]);
                assert_int_equal(turbod_policy_request(policy[k], &p, NULL, &r[k], &err), 0);
            }
            assert_int_equal(turbod_policy_stat_of(policy[k]).runs, 2);
            turbod_policy_free(policy[k]); /* what a request got outlives the policy */
        }
        assert_int_equal(r[0].params.n_program, r[1].params.n_program);
        assert_true((i == 2 || i == 3) == (r[0].params.n_program > 0));
        for (int32_t s = 0; s < r[0].params.n_program; s++) {
            turbo_sample_step a = r[0].program[s], b = r[1].program[s];
            assert_int_equal(a.n_ids, b.n_ids);
            assert_memory_equal(a.ids, b.ids, (size_t)a.n_ids * sizeof *a.ids);
            a.ids = b.ids = NULL;
            assert_memory_equal(&a, &b, sizeof a);
        }
        assert_ptr_equal(r[0].params.program, r[0].program);
        r[0].params.program = r[1].params.program = NULL;
        assert_memory_equal(&r[0].params, &r[1].params, sizeof p);
        turbod_policy_result_free(&r[0]);
        turbod_policy_result_free(&r[1]);
    }
}

static void test_policy_refused_at_load(void **state)
{
    static const char *const bad[][2] = {
        {"return 1", "does not call turbo.policy"},
        {"turbo.policy{ token = 1 }", "token must be a function"},
        {"turbo.policy{ logits = turbo.chain() }", "logits must be a function"},
        {"turbo.policy{ requets = function() end }", "requets"},
        {"turbo.policy{ request = 5 }", "request"},
        {"turbo.policy{}", "needs a chain"},
        {"turbo.policy(5)", "takes a table"},
        {"turbo.policy{ chain = {} }", "turbo.chain()"},
        {"turbo.policy{ on_error = 'never' }", "on_error"},
        {"turbo.policy{ args = 'x' }", "args"},
        {"turbo.policy{ init = function() error('not today') end }", "not today"},
        {"turbo.policy{ init = function() while true do end end }", "script limit"},
        {"turbo.policy(turbo.chain():mirostat(5))", "mirostat takes a table"},
        {"turbo.policy(turbo.chain():mirostat{tau=0})", "tau is 0"},
        {"turbo.policy(turbo.chain():mirostat{mu=1})", "no \"mu\""},
        {"turbo.policy(turbo.chain():penalise{rep=1})", "no step \"penalise\""},
        {"turbo.policy(turbo.chain():penalize{last_n=-1})", "last_n is -1"},
        {"turbo.policy(turbo.chain():ban{-1})", "no token id"},
        {"turbo.policy(turbo.chain():ban{1.5})", "no token id"},
        {"turbo.policy(turbo.chain():ban{'<x>'})", "no tokenizer"},
        {"turbo.policy(turbo.chain():force{1, 2})", "one token"},
        {"turbo.policy(turbo.chain():add({1}))", "takes 2 values"},
        {"local c = turbo.chain() for i = 1, 33 do c = c:scale(1) end turbo.policy(c)",
         "at most 32"},
        {"turbo.tokens.matching('x')", "no tokenizer"},
        {"turbo.policy(turbo.chain():temperature(3))", "temperature is 3"},
        {"turbo.policy(turbo.chain():temperature(0/0))", "temperature is"},
        {"turbo.policy(turbo.chain():temperature('1'))", "a number is needed"},
        {"turbo.policy(turbo.chain():top_p(0))", "top_p is 0"},
        {"turbo.policy(turbo.chain():top_k(1.5))", "whole number"},
        {"turbo.policy(turbo.chain().temperature(1))", "colon"},
        {"local c = turbo.chain() c.x = 1 turbo.policy(c)", "cannot be changed"},
        {"local c = turbo.chain():temperature(1) turbo.policy(c) turbo.policy(c)", "second time"},
    };
    turbo_err err;
    turbod_policy *p = NULL;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (load_text(bad[i][0], &p, &err) == TURBO_OK)
            fail_msg("loads: %s", bad[i][0]);
        if (!strstr(err.text, bad[i][1]))
            fail_msg("%s: \"%s\" lacks \"%s\"", bad[i][0], err.text, bad[i][1]);
    }
    assert_int_equal(turbod_policy_load("/nonexistent/x.lua", "x", NULL, &p, &err), TURBO_ENOENT);
}

#define HOOK(body) "turbo.policy{ request = function(req) " body " end }"

static void test_policy_fails(void **state)
{
    static const struct {
        const char *script, *args;
        turbo_status status;
        const char *text;
    } rows[] = {
        {HOOK("req:reject('not on Sundays')"), NULL, TURBO_ECANCELLED, "not on Sundays"},
        {HOOK("pcall(req.reject, req, 'first') pcall(req.reject, req, 'second')"), NULL,
         TURBO_ECANCELLED, "first"},
        {HOOK("req:reject('a\\xff\\n')"), NULL, TURBO_ECANCELLED, "a"},
        {HOOK("req.temperature = 0.1 req.top_p = 7"), NULL, TURBO_EDATA, "top_p is 7"},
        {HOOK("req.temprature = 1"), NULL, TURBO_EDATA, "temprature"},
        {HOOK("return req.temprature"), NULL, TURBO_EDATA, "temprature"},
        {HOOK("req.seed = 1.5"), NULL, TURBO_EDATA, "seed"},
        {HOOK("req.temperature = nil"), NULL, TURBO_EDATA, "a nil"},
        {HOOK("error('broken')"), NULL, TURBO_EDATA, "broken"},
        {HOOK("error({})"), NULL, TURBO_EDATA, "raised a table"},
        {HOOK("local x = nil + 1"), NULL, TURBO_EDATA, "test.lua:1:"},
        {HOOK("req.temperature = 0.1 while true do end"), NULL, TURBO_ELIMIT, "script limit"},
        {HOOK("req.temperature = 0.1 local t = {} while true do t = {t} end"), NULL, TURBO_ELIMIT,
         "not enough memory"},
        {"turbo.policy(turbo.chain():temperature(1))", "{\"x\":1}", TURBO_EINVAL, "takes no \"x\""},
        {"turbo.policy{ args = {'a', 'b'}, request = function() end }", "{\"c\":1}", TURBO_EINVAL,
         "takes no \"c\""},
        {HOOK(""), "[1]", TURBO_EINVAL, "must be an object"},
        {HOOK(""), "{\"a\":[[[[[[[[[[1]]]]]]]]]]}", TURBO_EDATA, "deep"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbo_sample_params p, before;
        turbo_err err = {{0}};
        neutral(&before);
        turbo_status st = ask(rows[i].script, rows[i].args, &p, &err);
        /* On a busy machine time may end it first. */
        bool late = strstr(rows[i].text, "memory") && strstr(err.text, "script limit");
        if (st != rows[i].status || (!late && !strstr(err.text, rows[i].text)))
            fail_msg("%s: %d \"%s\"", rows[i].script, st, err.text);
        assert_memory_equal(&p, &before, sizeof p); /* never half a change */
    }
}

static void test_policy_args(void **state)
{
    turbo_sample_params p;
    turbo_err err = {{0}};
    (void)state;
    assert_int_equal(
        ask(HOOK("local a = req.args assert(a.s == 'x' and a.b == false and a.n == nil and "
                 "a.l[2] == 20 and a.o.k == 1.5 and math.type(a.l[1]) == 'integer') "
                 "assert(next(a.e) == nil)"),
            "{\"s\":\"x\",\"b\":false,\"n\":null,\"l\":[10,20],\"o\":{\"k\":1.5},\"e\":[]}", &p,
            &err),
        TURBO_OK);
    assert_int_equal(ask(HOOK("assert(next(req.args) == nil)"), NULL, &p, &err), TURBO_OK);
}

/* on_error = "skip": the request goes on as it was asked for. */
static void test_policy_skip(void **state)
{
    turbo_sample_params p;
    turbo_err err = {{0}};
    (void)state;
    assert_int_equal(ask("turbo.policy{ on_error = 'skip', chain = turbo.chain():temperature(0.1), "
                         "request = function() error('x') end }",
                         NULL, &p, &err),
                     TURBO_OK);
    assert_true(near(p.temperature, 1));
    assert_int_equal(
        ask("turbo.policy{ on_error = 'skip', request = function(r) r:reject('no') end }", NULL, &p,
            &err),
        TURBO_ECANCELLED);
}

/* Five time-outs within a minute switch a policy off: the sixth request is answered at once. */
static void test_policy_switched_off(void **state)
{
    turbod_policy *policy = NULL;
    turbo_err err = {{0}};
    turbo_sample_params p;
    (void)state;
    assert_int_equal(load_text(HOOK("while true do end"), &policy, &err), TURBO_OK);
    neutral(&p);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(run_on(policy, &p, NULL, &err), TURBO_ELIMIT);
        assert_non_null(strstr(err.text, "script limit"));
    }
    double t = now_ms();
    assert_int_equal(run_on(policy, &p, NULL, &err), TURBO_ELIMIT);
    assert_non_null(strstr(err.text, "switched off"));
    assert_true(now_ms() - t < 20);
    turbod_policy_free(policy);
}

static void *many(void *arg)
{
    for (int i = 0; i < 200; i++) {
        turbo_sample_params p;
        turbo_err err;
        neutral(&p);
        p.seed = (uint64_t)i;
        if (run_on(arg, &p, NULL, &err) || p.top_k != i + 1)
            return arg;
    }
    return NULL;
}

static void test_policy_threads(void **state)
{
    turbod_policy *policy = NULL;
    turbo_err err = {{0}};
    pthread_t t[4];
    (void)state;
    assert_int_equal(load_text("n = 0 turbo.policy{ request = function(req) n = n + 1 "
                               "req.top_k = req.seed + n end }",
                               &policy, &err),
                     TURBO_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, many, policy), 0);
    for (int i = 0; i < 4; i++) {
        void *bad;
        pthread_join(t[i], &bad);
        assert_null(bad);
    }
    turbod_policy_free(policy);
}

/* The scripts that ship. */
static void test_policy_shipped(void **state)
{
    static const char *const names[] = {"house", "greedy"};
    char path[4096];
    turbod_policy *both[2] = {NULL, NULL};
    turbo_err err = {{0}};
    turbo_sample_params p;
    (void)state;
    for (int i = 0; i < 2; i++) { /* the others ask for a tokenizer: test_steer has them */
        snprintf(path, sizeof path, "%s/scripts/sampling/%s.lua", source_dir(), names[i]);
        if (turbod_policy_load(path, names[i], NULL, &both[i], &err))
            fail_msg("%s", err.text);
    }
    turbod_policy *house = both[0];
    neutral(&p);
    assert_int_equal(run_on(house, &p, NULL, &err), TURBO_OK);
    assert_true(near(p.temperature, 0.7) && near(p.min_p, 0.05) &&
                near(p.repetition_penalty, 1.05));
    p.temperature = 0;
    assert_int_equal(run_on(house, &p, NULL, &err), TURBO_OK);
    assert_true(near(p.temperature, 0));
    cJSON *a = cJSON_Parse("{\"warmth\":0.9}");
    neutral(&p);
    assert_int_equal(run_on(house, &p, a, &err), TURBO_OK);
    assert_true(near(p.temperature, 0.9));
    cJSON_Delete(a);
    a = cJSON_Parse("{\"warmth\":\"hot\"}");
    assert_int_equal(run_on(house, &p, a, &err), TURBO_ECANCELLED);
    cJSON_Delete(a);
    double t = now_ms();
    neutral(&p);
    for (int i = 0; i < 200; i++)
        assert_int_equal(run_on(house, &p, NULL, &err), TURBO_OK);
    print_message("house policy: %.0f us a request\n", (now_ms() - t) * 1e3 / 200);
    turbod_policy_free(house);
    turbod_policy_free(both[1]);
}

/* The names after `prefix` in the definition file, between two lines; each one once. */
static int names_of(const char *from, const char *to, const char *prefix, char out[][32], int max)
{
    char path[4096], line[512];
    bool inside = false;
    int n = 0;
    snprintf(path, sizeof path, "%s/scripts/lua/turbo.d.lua", source_dir());
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        inside = (inside || !strncmp(line, from, strlen(from))) && strncmp(line, to, strlen(to));
        if (inside && !strncmp(line, prefix, strlen(prefix)) && n < max)
            sscanf(line + strlen(prefix), "%31[a-z_]", out[n++]);
    }
    fclose(f);
    return n;
}

/* Editors are told what there is: neither more nor less. */
static void test_definitions(void **state)
{
    char names[32][32], script[256];
    turbo_sample_params p;
    turbo_err err = {{0}};
    (void)state;
    int n = names_of("---@class turbo.Request", "local req", "---@field ", names, 32);
    assert_int_equal(n, 9 + 5);
    n += names_of("local req", "---The logits of", "function req:", names + n, 32 - n);
    assert_int_equal(n, 9 + 5 + 6);
    for (int i = 0; i < n; i++) {
        snprintf(script, sizeof script, HOOK("assert(req.%.31s ~= nil)"), names[i]);
        if (ask(script, NULL, &p, &err))
            fail_msg("%s: %s", names[i], err.text);
    }
    /* The error that lists the fields names each of them. */
    assert_int_equal(ask(HOOK("return req.nothing"), NULL, &p, &err), TURBO_EDATA);
    for (int i = 0; i < n; i++)
        if (!strstr(err.text, names[i]))
            fail_msg("\"%s\" lacks %s", err.text, names[i]);
    n = names_of("local chain", "---A chain without", "function chain:", names, 32);
    assert_int_equal(n, 17);
    for (int i = 0; i < n; i++) {
        snprintf(script, sizeof script, "assert(turbo.chain().%.31s) turbo.policy(turbo.chain())",
                 names[i]);
        assert_int_equal(ask(script, NULL, &p, &err), TURBO_OK);
    }
    n = names_of("---@class turbo.PolicySpec", "---Registers the policy", "---@field ", names, 32);
    assert_int_equal(n, 8);
    turbod_policy *none = NULL;
    assert_int_not_equal(load_text("turbo.policy{ nonsense = 1 }", &none, &err), TURBO_OK);
    for (int i = 0; i < n; i++)
        assert_non_null(strstr(err.text, names[i]));
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/turbo-lua-XXXXXX");
    turbod_log_level(TURBO_LOG_ERROR);
    return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    char path[128];
    (void)state;
    snprintf(path, sizeof path, "%s/test.lua", folder);
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_sets),
        cmocka_unit_test(test_policy_fixed),
        cmocka_unit_test(test_policy_refused_at_load),
        cmocka_unit_test(test_policy_fails),
        cmocka_unit_test(test_policy_args),
        cmocka_unit_test(test_policy_skip),
        cmocka_unit_test(test_policy_switched_off),
        cmocka_unit_test(test_policy_threads),
        cmocka_unit_test(test_policy_shipped),
        cmocka_unit_test(test_definitions),
    };
    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
