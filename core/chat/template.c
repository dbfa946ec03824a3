/* core/chat/template.c: see template.h. */
#include "chat/template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lua/sandbox.h"
#include "util/checked.h"
#include "util/err.h"

#define MAX_STOPS 16
#define MAX_STOP 64
#define MAX_SEGMENTS 65536
#define MAX_MESSAGES 4096
#define MAX_TEXT ((size_t)64 << 20)

struct turbod_template {
    turbod_script script;
    char stops[MAX_STOPS][MAX_STOP];
    size_t n_stops;
};

/* Registry keys; their addresses are the keys. */
static const char key_render, key_job;

typedef struct render_job {
    const turbod_message *msgs;
    size_t n;
    const turbod_render_opts *opts;
    turbod_render *out;
    turbod_template *load; /* while loading: stop tokens go here */
} render_job;

static render_job *job_of(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_job);
    render_job *j = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return j;
}

/* ---- out:special, out:text, out:user, out:image
 * ---------------------------------------------------------------- */

static int put_segment(lua_State *L, turbod_render *r, turbod_segment g)
{
    if (r->n == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 32;
        turbod_segment *p = r->n < MAX_SEGMENTS ? realloc(r->segments, cap * sizeof *p) : NULL;
        if (!p)
            return luaL_error(L, "the prompt has too many parts");
        r->segments = p;
        r->cap = cap;
    }
    r->segments[r->n++] = g;
    return 0;
}

static int add_segment(lua_State *L, bool special)
{
    render_job *j = job_of(L);
    size_t len;
    if (!j || !j->out)
        return luaL_error(L, "out can be used while a prompt is rendered only");
    if (lua_type(L, 1) != LUA_TTABLE || lua_type(L, 2) != LUA_TSTRING)
        return luaL_error(L, "out:special, out:text and out:user take one string");
    const char *s = lua_tolstring(L, 2, &len);
    turbod_render *r = j->out;
    if (!len)
        return 0;
    size_t at = r->text.len;
    if (!turbod_buf_add(&r->text, s, len))
        return luaL_error(L, "the prompt is too long");
    if (!special && r->n && !r->segments[r->n - 1].special && !r->segments[r->n - 1].image) {
        r->segments[r->n - 1].len += len;
        return 0;
    }
    return put_segment(L, r, (turbod_segment){at, len, special, false});
}

/* out:image(): the next picture of the conversation. */
static int out_image(lua_State *L)
{
    render_job *j = job_of(L);
    if (!j || !j->out)
        return luaL_error(L, "out can be used while a prompt is rendered only");
    j->out->n_images++;
    return put_segment(L, j->out, (turbod_segment){j->out->text.len, 0, false, true});
}

static int out_special(lua_State *L)
{
    return add_segment(L, true);
}

static int out_text(lua_State *L)
{
    return add_segment(L, false);
}

/* ---- turbo.template
 * ------------------------------------------------------------------------------------ */

static int read_stops(lua_State *L, int table)
{
    render_job *j = job_of(L);
    lua_pushliteral(L, "stop");
    lua_rawget(L, table);
    if (lua_type(L, -1) == LUA_TNIL)
        return 0;
    if (lua_type(L, -1) != LUA_TTABLE)
        return luaL_error(L, "turbo.template: stop must be a list of token names");
    size_t n = (size_t)lua_rawlen(L, -1);
    if (n > MAX_STOPS)
        return luaL_error(L, "turbo.template: at most %d stop tokens", MAX_STOPS);
    for (size_t i = 0; i < n; i++) {
        size_t len = 0;
        lua_rawgeti(L, -1, (lua_Integer)i + 1);
        const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &len) : NULL;
        if (!s || !len || len >= MAX_STOP || strlen(s) != len)
            return luaL_error(L, "turbo.template: stop token %d is no name of 1 to %d bytes",
                              (int)i + 1, MAX_STOP - 1);
        if (j && j->load) {
            memcpy(j->load->stops[i], s, len + 1);
            j->load->n_stops = i + 1;
        }
        lua_pop(L, 1);
    }
    return 0;
}

/* turbo.template(function) or turbo.template{ stop = {...}, render = function }. */
static int bind_template(lua_State *L)
{
    lua_settop(L, 1);
    if (lua_type(L, 1) == LUA_TTABLE) {
        lua_pushnil(L);
        while (lua_next(L, 1)) {
            const char *k = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
            if (strcmp(k, "stop") && strcmp(k, "render"))
                return luaL_error(L,
                                  "turbo.template: unknown field \"%s\"; stop and render are known",
                                  k);
            lua_pop(L, 1);
        }
        read_stops(L, 1);
        lua_pushliteral(L, "render");
        lua_rawget(L, 1);
    }
    if (lua_type(L, -1) != LUA_TFUNCTION)
        return luaL_error(L, "turbo.template needs a function(messages, out, opts)");
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_render) != LUA_TNIL)
        return luaL_error(L, "turbo.template is called a second time");
    lua_pop(L, 1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_render);
    return 0;
}

/* turbo.trim(s): without ASCII white space at both ends; many templates ask for it. */
static int bind_trim(lua_State *L)
{
    static const char blank[] = " \t\n\r\f\v";
    size_t n;
    if (lua_type(L, 1) != LUA_TSTRING)
        return luaL_error(L, "turbo.trim takes a string");
    const char *s = lua_tolstring(L, 1, &n);
    while (n && *s && strchr(blank, *s)) {
        s++;
        n--;
    }
    while (n && s[n - 1] && strchr(blank, s[n - 1]))
        n--;
    lua_pushlstring(L, s, n);
    return 1;
}

static int bindings(lua_State *L)
{
    lua_newtable(L);
    lua_pushcfunction(L, bind_template);
    lua_setfield(L, -2, "template");
    lua_pushcfunction(L, bind_trim);
    lua_setfield(L, -2, "trim");
    lua_setglobal(L, "turbo");
    return 0;
}

static int set_job(lua_State *L)
{
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_job);
    return 0;
}

/* Pushes render, messages, out, opts. */
static int push_call(lua_State *L)
{
    render_job *j = job_of(L);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_render) != LUA_TFUNCTION)
        return luaL_error(L, "the script does not call turbo.template");
    lua_createtable(L, (int)j->n, 0);
    for (size_t i = 0; i < j->n; i++) {
        const turbod_message *m = &j->msgs[i];
        lua_createtable(L, 0, 4);
        lua_pushstring(L, m->role);
        lua_setfield(L, -2, "role");
        lua_pushlstring(L, m->content, m->content_len);
        lua_setfield(L, -2, "content");
        if (m->name) {
            lua_pushstring(L, m->name);
            lua_setfield(L, -2, "name");
        }
        lua_createtable(L, (int)m->n_images, 0);
        for (size_t k = 0; k < m->n_images; k++) {
            lua_pushinteger(L, (lua_Integer)m->image_at[k]);
            lua_rawseti(L, -2, (lua_Integer)k + 1);
        }
        lua_setfield(L, -2, "images");
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    lua_createtable(L, 0, 3);
    lua_pushcfunction(L, out_special);
    lua_setfield(L, -2, "special");
    lua_pushcfunction(L, out_text);
    lua_setfield(L, -2, "text");
    lua_pushcfunction(L, out_text);
    lua_setfield(L, -2, "user");
    lua_pushcfunction(L, out_image);
    lua_setfield(L, -2, "image");
    lua_createtable(L, 0, 2);
    lua_pushboolean(L, j->opts->add_generation_prompt);
    lua_setfield(L, -2, "add_generation_prompt");
    lua_pushboolean(L, j->opts->continue_final_message);
    lua_setfield(L, -2, "continue_final_message");
    return 4;
}

static turbo_status start(const turbod_template *t, turbod_lua *s, size_t extra, render_job *job,
                          turbo_err *err)
{
    turbo_status st = turbod_lua_open(s, extra, bindings, err);
    if (st)
        return st;
    /* Copying large messages in and out is the host's time, not the script's. */
    turbod_lua_clock(s, TURBOD_LUA_REQUEST_MS + (int64_t)(extra >> 17));
    st = turbod_lua_protect(s, set_job, job, &t->script, err);
    return st ? st : turbod_lua_run(s, &t->script, err);
}

turbo_status turbod_template_load(const char *path, turbod_template **out, turbo_err *err)
{
    turbod_lua s = {0};
    turbod_template *t = calloc(1, sizeof *t);
    if (!t)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a chat template");
    render_job job = {.load = t};
    turbo_status st = turbod_script_load(path, &t->script, err);
    if (!st)
        st = start(t, &s, 0, &job, err);
    if (!st && lua_rawgetp(s.L, LUA_REGISTRYINDEX, &key_render) != LUA_TFUNCTION)
        st = turbod_err(err, TURBO_EDATA, "%s does not call turbo.template", t->script.name);
    turbod_lua_close(&s);
    if (st)
        turbod_template_free(t);
    else
        *out = t;
    return st;
}

void turbod_template_free(turbod_template *t)
{
    if (!t)
        return;
    turbod_script_free(&t->script);
    free(t);
}

const char *turbod_template_name(const turbod_template *t)
{
    return t->script.name;
}

const char *turbod_template_stops(const turbod_template *t, size_t i)
{
    return i < t->n_stops ? t->stops[i] : NULL;
}

turbo_status turbod_template_render(const turbod_template *t, const turbod_message *msgs, size_t n,
                                    const turbod_render_opts *opts, turbod_render *out,
                                    turbo_err *err)
{
    size_t extra = 0, pictures = 0;
    turbod_lua s = {0};
    *out = (turbod_render){0};
    turbod_buf_init(&out->text, MAX_TEXT);
    if (opts->add_generation_prompt && opts->continue_final_message)
        return turbod_err(err, TURBO_EINVAL,
                          "add_generation_prompt opens a new message and "
                          "continue_final_message leaves the last one open: choose one");
    if (opts->continue_final_message && !n)
        return turbod_err(err, TURBO_EINVAL, "continue_final_message needs a message to continue");
    if (n > MAX_MESSAGES)
        return turbod_err(err, TURBO_ELIMIT, "%zu messages; at most %d are possible", n,
                          MAX_MESSAGES);
    for (size_t i = 0; i < n; i++) {
        pictures += msgs[i].n_images;
        if (!turbod_add(extra, msgs[i].content_len + 64 * msgs[i].n_images + 512, &extra))
            return turbod_err(err, TURBO_ELIMIT, "the messages are too long");
    }
    render_job job = {.msgs = msgs, .n = n, .opts = opts, .out = out};
    turbo_status st = start(t, &s, extra, &job, err);
    if (!st)
        st = turbod_lua_protect(&s, push_call, NULL, &t->script, err);
    if (!st)
        st = turbod_lua_call(&s, 3, 0, &t->script, err);
    turbod_lua_close(&s);
    if (!st && out->n_images != pictures)
        st = turbod_err(err, TURBO_EINVAL,
                        "the chat template placed %zu of %zu images; it may not be one for images",
                        out->n_images, pictures);
    if (st)
        turbod_render_free(out);
    return st;
}

void turbod_render_free(turbod_render *r)
{
    turbod_buf_free(&r->text);
    free(r->segments);
    *r = (turbod_render){0};
}

/* One special token by its name. A piece that merely looks alike is not one. */
static turbo_status special_id(const turbo_tokenizer_vtbl *v, const void *tok, const char *name,
                               size_t len, int32_t *id, turbo_err *err)
{
    const uint32_t special = (uint32_t)TURBO_TOKEN_CONTROL | (uint32_t)TURBO_TOKEN_SPECIAL;
    *id = len <= UINT32_MAX ? v->find(tok, name, (uint32_t)len) : -1;
    if (*id >= 0 && (v->attr(tok, *id) & special))
        return TURBO_OK;
    return turbod_err(
        err, TURBO_EDATA,
        "the chat template writes the special token %.*s, which this tokenizer does not "
        "have; set chat_template to one that fits the model",
        (int)(len < 64 ? len : 64), name);
}

/* Text to ids behind the n that are there; *cap grows when a normaliser lengthens the text. */
static turbo_status append_text(const turbo_tokenizer_vtbl *v, const void *tok, const char *text,
                                size_t len, uint32_t flags, int32_t **ids, size_t *n, size_t *cap,
                                turbo_err *err)
{
    uint64_t k = 0;
    turbo_status st = v->encode(tok, text, len, flags, *ids + *n, *cap - *n, &k, err);
    if (st == TURBO_ELIMIT && k > *cap - *n) {
        size_t more, bytes;
        if (!turbod_add(*cap, (size_t)k, &more) || !turbod_mul(more, sizeof **ids, &bytes))
            return turbod_err(err, TURBO_ELIMIT, "the prompt is too long");
        int32_t *p = realloc(*ids, bytes);
        if (!p)
            return turbod_err(err, TURBO_ENOMEM, "no memory for a prompt");
        *ids = p;
        *cap = more;
        st = v->encode(tok, text, len, flags, *ids + *n, *cap - *n, &k, err);
    }
    *n += st ? 0 : (size_t)k;
    return st;
}

turbo_status turbod_template_encode(const turbo_tokenizer_vtbl *v, const void *tok,
                                    const turbod_render *r, bool continues, int32_t **ids,
                                    size_t *n_ids, turbo_err *err)
{
    return turbod_template_encode_media(v, tok, r, continues, NULL, NULL, ids, n_ids, err);
}

turbo_status turbod_template_encode_media(const turbo_tokenizer_vtbl *v, const void *tok,
                                          const turbod_render *r, bool continues,
                                          const turbod_media_facts *media, size_t *image_at,
                                          int32_t **ids, size_t *n_ids, turbo_err *err)
{
    size_t cap, n = 0, bytes, rows, images = 0;
    bool fresh = false; /* a picture came just before */
    turbo_tokenizer_info info = {.size = sizeof info};
    v->info(tok, &info);
    /* Every token stands for a byte of text at least, a dummy prefix and a special token for none.
     */
    if (r->n_images && !media)
        return turbod_err(err, TURBO_EUNSUPPORTED, "this model takes no images; send text");
    if (!turbod_mul(r->n_images, media ? (size_t)media->n_rows : 0, &rows) ||
        !turbod_add(r->text.len, r->n + 16, &cap) || !turbod_add(cap, rows, &cap) ||
        !turbod_mul(cap, sizeof **ids, &bytes))
        return turbod_err(err, TURBO_ELIMIT, "the prompt is too long");
    int32_t *out = malloc(bytes);
    if (!out)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a prompt");
    turbo_status st = TURBO_OK;
    for (size_t i = 0; i < r->n && !st; i++) {
        const turbod_segment *g = &r->segments[i];
        const char *text = r->text.ptr + g->at;
        if (n == cap) { /* earlier text took more ids than bytes */
            st = turbod_err(err, TURBO_ELIMIT, "the prompt is too long");
        } else if (g->image && cap - n < (size_t)media->n_rows) {
            st = turbod_err(err, TURBO_ELIMIT, "the prompt is too long");
        } else if (g->image) {
            image_at[images++] = n;
            for (int32_t k = 0; k < media->n_rows; k++)
                out[n++] = media->placeholder;
        } else if (g->special) {
            st = special_id(v, tok, text, g->len, &out[n], err);
            n += !st;
        } else {
            /* A text behind bos starts the document, as it does in a plain prompt; a text behind a picture
             * is encoded as one of its own, as the reference does. */
            bool first = fresh || (!continues && (n == 0 || (n == 1 && out[0] == info.bos)));
            st = append_text(v, tok, text, g->len, first ? (uint32_t)TURBO_TOK_FIRST : 0, &out, &n,
                             &cap, err);
        }
        fresh = g->image;
    }
    if (st) {
        free(out);
        return st;
    }
    *ids = out;
    *n_ids = n;
    return TURBO_OK;
}
