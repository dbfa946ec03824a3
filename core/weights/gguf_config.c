/* core/weights/gguf_config.c: config.json out of the metadata of a GGUF file; see gguf_map.h. Each rule of
 * turbo/ext/gguf.h is a function here. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"
#include "util/json.h"
#include "weights/gguf_map.h"

#define MAX_PATH 256
#define MAX_LIST 4096 /* elements of an array that becomes a list */
#define MAX_BANDS 512 /* divisors: half a head */
#define FAULT(...) turbod_err(err, TURBO_EDATA, __VA_ARGS__)

typedef struct maker {
    const turbod_gguf *g;
    const turbo_gguf *table;
    cJSON *root;
    turbo_err *err;
} maker;

static turbo_status no_memory(const maker *m)
{
    return turbod_err(m->err, TURBO_ENOMEM, "no memory for the settings of %.80s",
                      turbod_gguf_name(m->g));
}

/* ---- paths ------------------------------------------------------------------------------------------ */

/* The object that path ends in and its last part. make: objects on the way are made. NULL: there is none. */
static cJSON *parent(cJSON *o, const char *path, bool make, const char **last)
{
    const char *dot;
    while (o && (dot = strchr(path, '.'))) {
        char part[MAX_PATH];
        size_t n = (size_t)(dot - path);
        if (n >= sizeof part)
            return NULL;
        memcpy(part, path, n);
        part[n] = '\0';
        cJSON *next = cJSON_GetObjectItemCaseSensitive(o, part);
        if (make && (!next || cJSON_IsNull(next))) {
            cJSON_DeleteItemFromObjectCaseSensitive(o, part);
            next = cJSON_AddObjectToObject(o, part);
        }
        o = cJSON_IsObject(next) ? next : NULL;
        path = dot + 1;
    }
    *last = path;
    return o;
}

static const cJSON *value_at(const maker *m, const char *path)
{
    const char *last;
    const cJSON *o = parent(m->root, path, false, &last);
    return o ? turbod_json_get(o, last) : NULL;
}

/* v becomes the value of path, unless there is one; v is taken in any case. */
static turbo_status put(const maker *m, const char *path, bool make, cJSON *v)
{
    const char *last;
    if (!v)
        return no_memory(m);
    cJSON *o = parent(m->root, path, make, &last);
    if (!o || turbod_json_get(o, last)) {
        cJSON_Delete(v);
        return TURBO_OK;
    }
    cJSON_DeleteItemFromObjectCaseSensitive(o, last);
    if (cJSON_AddItemToObject(o, last, v))
        return TURBO_OK;
    cJSON_Delete(v);
    return no_memory(m);
}

/* ---- rules ------------------------------------------------------------------------------------------ */

static const turbod_gguf_value *key_of(const maker *m, const turbo_gguf_row *r)
{
    char key[MAX_PATH];
    snprintf(key, sizeof key, "%s%s", *r->from == '.' ? m->table->arch : "", r->from);
    return turbod_gguf_find(m->g, key);
}

static cJSON *text(const uint8_t *p, uint64_t n)
{
    char *copy = malloc(n + 1);
    if (!copy)
        return NULL;
    memcpy(copy, p, n);
    copy[n] = '\0';
    cJSON *v = cJSON_CreateString(copy);
    free(copy);
    return v;
}

/* NULL: no memory. What config.json cannot hold becomes null, which is no value. */
static cJSON *value(const turbod_gguf_value *v)
{
    double d;
    if (v->type == TURBO_GGUF_STRING)
        return v->n <= MAX_LIST && !memchr(v->at, 0, v->n) ? text(v->at, v->n) : cJSON_CreateNull();
    if (v->type == TURBO_GGUF_BOOL)
        return cJSON_CreateBool(*v->at);
    if (v->type != TURBO_GGUF_ARRAY)
        return turbod_gguf_number(v, 0, &d) ? cJSON_CreateNumber(d) : cJSON_CreateNull();
    if (v->n > MAX_LIST || v->elem == TURBO_GGUF_STRING)
        return cJSON_CreateNull();
    cJSON *list = cJSON_CreateArray();
    for (uint64_t i = 0; list && i < v->n; i++) {
        cJSON *e = turbod_gguf_number(v, i, &d) ? cJSON_CreateNumber(d) : NULL;
        if (!e || !cJSON_AddItemToArray(list, e)) {
            cJSON_Delete(e);
            cJSON_Delete(list);
            return NULL;
        }
    }
    return list;
}

static turbo_status key_rule(const maker *m, const turbo_gguf_row *r)
{
    const turbod_gguf_value *v = key_of(m, r);
    if (!v && r->rule == TURBO_GGUF_NEED)
        return turbod_err(m->err, TURBO_EDATA, "%.80s: key %s%s is missing", turbod_gguf_name(m->g),
                          *r->from == '.' ? m->table->arch : "", r->from);
    if (!v || (r->rule == TURBO_GGUF_OPEN && r->arg && turbod_gguf_is_string(v, r->arg)))
        return TURBO_OK;
    const cJSON *there = value_at(m, r->to);
    if (r->rule == TURBO_GGUF_SAME && there) {
        cJSON *now = value(v);
        bool same = now && cJSON_Compare(there, now, true);
        cJSON_Delete(now);
        return same ? TURBO_OK
                    : turbod_err(m->err, TURBO_EUNSUPPORTED,
                                 "%.80s: %s differs from what else gives %s; that is not computed",
                                 turbod_gguf_name(m->g), r->from, r->to);
    }
    return put(m, r->to, r->rule == TURBO_GGUF_OPEN, value(v));
}

static turbo_status must_rule(const maker *m, const turbo_gguf_row *r)
{
    const turbod_gguf_value *v = key_of(m, r);
    double d = 0, want = strtod(r->arg, NULL);
    if (!v ||
        (v->type != TURBO_GGUF_ARRAY && turbod_gguf_number(v, 0, &d) && !(d < want) && !(d > want)))
        return TURBO_OK;
    return turbod_err(m->err, TURBO_EUNSUPPORTED, "%.80s: %s%s is not %s; that is not computed",
                      turbod_gguf_name(m->g), *r->from == '.' ? m->table->arch : "", r->from,
                      r->arg);
}

static turbo_status tensor_rule(const maker *m, const turbo_gguf_row *r)
{
    const turbod_st_tensor *t = turbod_gguf_tensor(m->g, r->from);
    if (r->rule != TURBO_GGUF_ROWS)
        return put(m, r->to, false, cJSON_CreateBool((t != NULL) == (r->rule == TURBO_GGUF_HAS)));
    return t ? put(m, r->to, false, cJSON_CreateNumber((double)t->dims[0])) : TURBO_OK;
}

/* ---- divisors of frequencies ------------------------------------------------------------------------ */

/* The divisor of frequency f, as TURBO_ROPE_BANDS defines it. */
static double divisor(double f, double factor, double low, double high, double original)
{
    double turns = original * f / (2 * M_PI), t = (turns - low) / (high - low);
    t = t < 0 ? 0 : t > 1 ? 1 : t;
    return 1 / ((1 - t) / factor + t);
}

/* From the divisors d [n] of base^(-i/n) back to the numbers that they were made from. Between the bands
 * (1/d - 1/factor) / (1 - 1/factor) is linear in the frequency: two points of it give everything, with low as
 * the unit, since only ratios count. False when the divisors are no such thing. */
static bool solve(const double *d, uint64_t n, double base, double *factor, double *high,
                  double *original)
{
    double f[2] = {0}, t[2] = {0};
    int found = 0;
    *factor = d[n - 1];
    if (!(*factor > 1) || !(base > 1))
        return false;
    for (uint64_t i = 0; i < n; i++) {
        double fi = pow(base, -(double)i / (double)n),
               ti = (1 / d[i] - 1 / *factor) / (1 - 1 / *factor);
        if (!(ti > 0.01 && ti < 0.99))
            continue;
        f[found ? 1 : 0] = fi; /* the first and the last: the farther apart, the better */
        t[found ? 1 : 0] = ti;
        found++;
    }
    if (found < 2)
        return false;
    double slope = (t[0] - t[1]) / (f[0] - f[1]),
           at0 = slope * f[0] - t[0]; /* low / (high - low) */
    if (!(slope > 0 && at0 > 1e-3))
        return false;
    *high = rint((1 + 1 / at0) * 256) / 256;
    *original = rint(slope * (*high - 1) * 2 * M_PI);
    if (!(*high > 1 && *original >= 1 && *original <= 16777216))
        return false;
    for (uint64_t i = 0; i < n; i++)
        if (fabs(divisor(pow(base, -(double)i / (double)n), *factor, 1, *high, *original) / d[i] -
                 1) > 1e-5)
            return false;
    return true;
}

static turbo_status bands_rule(const maker *m, const turbo_gguf_row *r)
{
    const turbod_st_tensor *t = turbod_gguf_tensor(m->g, r->from);
    const cJSON *theta = value_at(m, "rope_theta");
    double d[MAX_BANDS], factor, high, original;
    char path[MAX_PATH];
    if (!t)
        return TURBO_OK;
    bool ok = t->dtype == TURBO_F32 && t->ndim == 1 && t->dims[0] <= MAX_BANDS;
    for (uint64_t i = 0; ok && i < t->dims[0]; i++) {
        float v;
        memcpy(&v, t->data + 4 * i, sizeof v);
        d[i] = (double)v;
        ok = v >= 1 && isfinite(v);
    }
    if (!ok || !solve(d, t->dims[0], cJSON_IsNumber(theta) ? theta->valuedouble : 10000, &factor,
                      &high, &original))
        return turbod_err(m->err, TURBO_EUNSUPPORTED,
                          "%.80s: tensor %s does not hold the divisors of %s scaling; others are "
                          "not computed",
                          turbod_gguf_name(m->g), r->from, r->arg);
    const struct {
        const char *key;
        double v;
    } rows[] = {{"factor", factor},
                {"low_freq_factor", 1},
                {"high_freq_factor", high},
                {"original_max_position_embeddings", original}};
    snprintf(path, sizeof path, "%s.rope_type", r->to);
    turbo_status st = put(m, path, true, cJSON_CreateString(r->arg));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++) {
        snprintf(path, sizeof path, "%s.%s", r->to, rows[i].key);
        st = put(m, path, true, cJSON_CreateNumber(rows[i].v));
    }
    return st;
}

turbo_status turbod_gguf_config(const turbod_gguf *g, const turbo_gguf *table, cJSON **out,
                                turbo_err *err)
{
    maker m = {g, table, NULL, err};
    turbo_err why;
    turbo_status st =
        turbod_json_parse(table->config, strlen(table->config), &turbod_json_file, &m.root, &why);
    if (st || !cJSON_IsObject(m.root)) {
        cJSON_Delete(m.root);
        return turbod_err(err, st == TURBO_ENOMEM ? st : TURBO_EINTERNAL,
                          "the plugin's table for GGUF files of \"%.32s\" is no JSON object",
                          table->arch);
    }
    for (const turbo_gguf_row *r = table->keys; r->from && !st; r++) {
        if (r->rule <= TURBO_GGUF_SAME || r->rule == TURBO_GGUF_NEED)
            st = key_rule(&m, r);
        else if (r->rule == TURBO_GGUF_MUST)
            st = must_rule(&m, r);
        else if (r->rule == TURBO_GGUF_BANDS)
            st = bands_rule(&m, r);
        else
            st = tensor_rule(&m, r);
    }
    if (st)
        cJSON_Delete(m.root);
    else
        *out = m.root;
    return st;
}
