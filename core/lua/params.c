/* core/lua/params.c: the sampling parameters that a script can name, with their ranges. */
#include <string.h>

#include "lua/bind.h"
#include "util/checked.h"

#define ROW(name, kind, lo, hi)                                                                    \
    {                                                                                              \
#name, offsetof(turbo_sample_params, name), kind, lo, hi                                   \
    }
static const param_row rows[] = {
    ROW(temperature, PARAM_FLOAT, 0, 2),
    ROW(top_p, PARAM_FLOAT, 1e-12, 1),
    ROW(min_p, PARAM_FLOAT, 0, 1),
    ROW(top_k, PARAM_INT, 0, 2147483647),
    ROW(repetition_penalty, PARAM_FLOAT, 1e-6, 10),
    ROW(presence_penalty, PARAM_FLOAT, -2, 2),
    ROW(frequency_penalty, PARAM_FLOAT, -2, 2),
    ROW(min_tokens, PARAM_INT, 0, 2147483647),
    ROW(seed, PARAM_SEED, 0, 0),
};
#undef ROW
#define N_ROWS (sizeof rows / sizeof rows[0])

const param_row *turbod_param_find(const char *name)
{
    for (size_t i = 0; i < N_ROWS; i++)
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    return NULL;
}

const char *turbod_param_names(void)
{
    return "temperature, top_p, min_p, top_k, repetition_penalty, presence_penalty, "
           "frequency_penalty, min_tokens, seed";
}

void turbod_param_push(lua_State *L, const turbo_sample_params *p, const param_row *row)
{
    const char *at = (const char *)p + row->offset;
    float f;
    int32_t i;
    uint64_t u;
    if (row->kind == PARAM_FLOAT) {
        memcpy(&f, at, sizeof f);
        lua_pushnumber(L, (double)f);
    } else if (row->kind == PARAM_INT) {
        memcpy(&i, at, sizeof i);
        lua_pushinteger(L, i);
    } else {
        memcpy(&u, at, sizeof u);
        lua_pushinteger(L, (lua_Integer)u);
    }
}

void turbod_param_set(lua_State *L, turbo_sample_params *p, const param_row *row, int at)
{
    char *to = (char *)p + row->offset;
    if (lua_type(L, at) != LUA_TNUMBER)
        luaL_error(L, "%s is a %s; a number is needed", row->name, luaL_typename(L, at));
    if (row->kind == PARAM_SEED) {
        int whole;
        lua_Integer v = lua_tointegerx(L, at, &whole);
        uint64_t u = (uint64_t)v;
        if (!whole)
            luaL_error(L, "seed is not a whole number");
        memcpy(to, &u, sizeof u);
        return;
    }
    double v = lua_tonumber(L, at);
    if (!turbod_d_in(v, row->lo, row->hi))
        luaL_error(L, "%s is %f; %f to %f is possible", row->name, v, row->lo, row->hi);
    if (row->kind == PARAM_FLOAT) {
        float f = (float)v;
        memcpy(to, &f, sizeof f);
        return;
    }
    int64_t whole = 0;
    if (!turbod_d2i(v, (int64_t)row->lo, (int64_t)row->hi, &whole))
        luaL_error(L, "%s is %f; a whole number is needed", row->name, v);
    int32_t i = (int32_t)whole;
    memcpy(to, &i, sizeof i);
}

size_t turbod_param_index(const param_row *row)
{
    return (size_t)(row - rows);
}

void turbod_param_copy(turbo_sample_params *to, const turbo_sample_params *from, uint32_t which)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        size_t n = rows[i].kind == PARAM_SEED ? sizeof(uint64_t) : sizeof(float);
        if (which >> i & 1)
            memcpy((char *)to + rows[i].offset, (const char *)from + rows[i].offset, n);
    }
}
