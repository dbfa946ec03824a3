/* core/lua/steps.c: one step of a sampling program, from the arguments of a method of a chain or a tape.
 * doc/sampling.md defines the steps; the ranges here are those that the sampler checks again. */
#include <stdlib.h>
#include <string.h>

#include "lua/bind.h"
#include "util/checked.h"

typedef enum { ONE, WHOLE, FIELDS, SET, SET_VALUE, TOKEN } shape;

/* A named argument of a FIELDS step. */
typedef struct field {
    const char *name;
    size_t offset; /* in turbo_sample_step; 0: the token set */
    bool whole;
    double lo, hi, dflt;
} field;

#define A offsetof(turbo_sample_step, a)
#define B offsetof(turbo_sample_step, b)
#define C offsetof(turbo_sample_step, c)
#define N offsetof(turbo_sample_step, n)
#define M offsetof(turbo_sample_step, m)
#define MOST 2147483647.0

static const field penalize[] = {{"rep", A, false, 1e-6, 10, 1},
                                 {"pres", B, false, -2, 2, 0},
                                 {"freq", C, false, -2, 2, 0},
                                 {"last_n", N, true, 0, MOST, 0},
                                 {0}};
static const field xtc[] = {{"threshold", A, false, 1e-12, 1, 0.1},
                            {"probability", B, false, 0, 1, 0.5},
                            {0}};
static const field dry[] = {{"multiplier", A, false, 0, 1e6, 0.8},
                            {"base", B, false, 1, 100, 1.75},
                            {"allowed_length", N, true, 0, MOST, 2},
                            {"last_n", M, true, 0, MOST, 0},
                            {"breakers", 0, false, 0, 0, 0},
                            {0}};
static const field mirostat[] = {{"tau", A, false, 1e-3, 100, 5},
                                 {"eta", B, false, 0, 1, 0.1},
                                 {0}};

static const struct {
    const char *name;
    int kind;
    shape shape;
    double lo, hi;
    const field *fields;
} table[] = {
    {"penalize", TURBO_STEP_PENALIZE, FIELDS, 0, 0, penalize},
    {"temperature", TURBO_STEP_TEMPERATURE, ONE, 0, 2, NULL},
    {"top_k", TURBO_STEP_TOP_K, WHOLE, 0, MOST, NULL},
    {"top_p", TURBO_STEP_TOP_P, ONE, 1e-12, 1, NULL},
    {"min_p", TURBO_STEP_MIN_P, ONE, 0, 1, NULL},
    {"typical", TURBO_STEP_TYPICAL, ONE, 1e-12, 1, NULL},
    {"top_n_sigma", TURBO_STEP_TOP_N_SIGMA, ONE, 0, 1000, NULL},
    {"xtc", TURBO_STEP_XTC, FIELDS, 0, 0, xtc},
    {"dry", TURBO_STEP_DRY, FIELDS, 0, 0, dry},
    {"mirostat", TURBO_STEP_MIROSTAT, FIELDS, 0, 0, mirostat},
    {"scale", TURBO_STEP_SCALE, ONE, 0, 1e6, NULL},
    {"add", TURBO_STEP_ADD, SET_VALUE, -1e6, 1e6, NULL},
    {"set", TURBO_STEP_SET, SET_VALUE, -1e6, 1e6, NULL},
    {"allow", TURBO_STEP_ALLOW, SET, 0, 0, NULL},
    {"ban", TURBO_STEP_BAN, SET, 0, 0, NULL},
    {"force", TURBO_STEP_FORCE, TOKEN, 0, 0, NULL},
    {"no_repeat_ngram", TURBO_STEP_NO_REPEAT_NGRAM, WHOLE, 1, MOST, NULL},
};
#define N_STEPS (sizeof table / sizeof table[0])

int turbod_step_find(const char *method)
{
    for (size_t i = 0; i < N_STEPS; i++)
        if (!strcmp(table[i].name, method))
            return table[i].kind;
    return 0;
}

const char *turbod_step_name(int kind)
{
    return table[kind - 1].name; /* the kinds count from 1 in the order of the table */
}

const char *turbod_policy_step_name(int32_t kind)
{
    return kind >= 1 && kind <= (int32_t)N_STEPS ? turbod_step_name(kind) : "?";
}

const char *turbod_step_names(void)
{
    return "penalize, temperature, top_k, top_p, min_p, typical, top_n_sigma, xtc, dry, mirostat, "
           "scale, add, set, allow, ban, force, no_repeat_ngram";
}

static double number(lua_State *L, int at, const char *what, double lo, double hi, bool whole)
{
    if (lua_type(L, at) != LUA_TNUMBER)
        luaL_error(L, "%s is a %s; a number is needed", what, luaL_typename(L, at));
    double v = lua_tonumber(L, at);
    int64_t i;
    if (!turbod_d_in(v, lo, hi))
        luaL_error(L, "%s is %f; %f to %f is possible", what, v, lo, hi);
    if (whole && !turbod_d2i(v, (int64_t)lo, (int64_t)hi, &i))
        luaL_error(L, "%s is %f; a whole number is needed", what, v);
    return v;
}

static void put(turbo_sample_step *s, size_t offset, bool whole, double v)
{
    float f = (float)v;
    int32_t i = whole ? (int32_t)v : 0;
    memcpy((char *)s + offset, whole ? (const void *)&i : (const void *)&f, 4);
}

static int use_set(lua_State *L, int at, turbo_sample_step *s)
{
    const token_set *set = turbod_tokens_check(L, at);
    s->ids = set->ids;
    s->n_ids = set->n;
    return at;
}

static int read_fields(lua_State *L, const char *name, const field *f, turbo_sample_step *s)
{
    int set = 0;
    if (lua_type(L, 2) != LUA_TTABLE)
        luaL_error(L, "%s takes a table of named values", name);
    for (size_t i = 0; f[i].name; i++)
        if (f[i].offset)
            put(s, f[i].offset, f[i].whole, f[i].dflt);
    lua_pushnil(L);
    while (lua_next(L, 2)) {
        const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
        const field *to = f;
        while (to->name && strcmp(to->name, key))
            to++;
        if (!to->name)
            luaL_error(L, "%s has no \"%s\"; see doc/lua.md", name, key);
        if (to->offset) {
            put(s, to->offset, to->whole, number(L, lua_gettop(L), key, to->lo, to->hi, to->whole));
            lua_pop(L, 1);
        } else { /* the set goes below the key, where lua_next leaves it alone */
            lua_insert(L, 3);
            set = 3;
        }
    }
    return set ? use_set(L, set, s) : 0;
}

int turbod_step_read(lua_State *L, int kind, turbo_sample_step *s)
{
    const char *name = turbod_step_name(kind);
    int n = lua_gettop(L) - 1, want = table[kind - 1].shape == SET_VALUE ? 2 : 1;
    *s = (turbo_sample_step){.size = sizeof *s, .kind = kind};
    if (n != want)
        luaL_error(L, "%s takes %d value%s", name, want, want == 1 ? "" : "s");
    double lo = table[kind - 1].lo, hi = table[kind - 1].hi;
    switch (table[kind - 1].shape) {
    case ONE: s->a = (float)number(L, 2, name, lo, hi, false); return 0;
    case WHOLE: s->n = (int32_t)number(L, 2, name, lo, hi, true); return 0;
    case FIELDS: return read_fields(L, name, table[kind - 1].fields, s);
    case SET_VALUE: s->a = (float)number(L, 3, name, lo, hi, false); return use_set(L, 2, s);
    case TOKEN:
        use_set(L, 2, s);
        if (s->n_ids != 1)
            luaL_error(L, "force takes one token");
        return 2;
    default: return use_set(L, 2, s);
    }
}

turbo_sample_step *turbod_program_copy(const turbo_sample_step *a, int32_t n_a,
                                       const turbo_sample_step *b, int32_t n_b)
{
    size_t ids = 0, bytes = 0, more = 0, steps = (size_t)n_a + (size_t)n_b;
    for (size_t i = 0; i < steps; i++)
        ids += (size_t)(i < (size_t)n_a ? &a[i] : &b[i - (size_t)n_a])->n_ids;
    turbo_sample_step *out = NULL;
    if (turbod_mul(steps, sizeof *out, &bytes) && turbod_mul(ids, sizeof(int32_t), &more) &&
        turbod_add(bytes, more, &bytes))
        out = malloc(bytes + 1);
    int32_t *at = out ? (int32_t *)(void *)(out + steps) : NULL;
    for (size_t i = 0; out && i < steps; i++) {
        out[i] = i < (size_t)n_a ? a[i] : b[i - (size_t)n_a];
        if (out[i].n_ids)
            memcpy(at, out[i].ids, (size_t)out[i].n_ids * sizeof *at);
        out[i].ids = at;
        at += out[i].n_ids;
    }
    return out;
}
