/* core/chat/template.c: see template.h. */
#include "chat/template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
        if (r->n >= MAX_SEGMENTS)
            return luaL_error(L, "the prompt has too many parts");
        turbod_segment *p = realloc(r->segments, cap * sizeof *p);
        if (!p) {
            turbod_lua_of(L)->no_memory = true;
            return luaL_error(L, "no memory for the prompt");
        }
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
    if (len > MAX_TEXT - at)
        return luaL_error(L, "the prompt is too long");
    if (!turbod_buf_add(&r->text, s, len)) {
        turbod_lua_of(L)->no_memory = true;
        return luaL_error(L, "no memory for the prompt");
    }
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

/* Bytes of the white space that s begins with, 0: none. python: what str.strip() of Python takes
 * too, U+001C to U+001F; otherwise White_Space of Unicode. */
static size_t space_at(const char *s, size_t n, bool python)
{
    const unsigned char *p = (const unsigned char *)s;
    if (!n)
        return 0;
    if (p[0] == ' ' || (p[0] >= 9 && p[0] <= 13) || (python && p[0] >= 0x1C && p[0] <= 0x1F))
        return 1;
    if (n >= 2 && p[0] == 0xC2 && (p[1] == 0x85 || p[1] == 0xA0))
        return 2;
    if (n < 3 || p[0] < 0xE1 || p[0] > 0xE3)
        return 0;
    unsigned c = (p[0] & 15u) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u);
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                   c == 0x202F || c == 0x205F || c == 0x3000
               ? 3
               : 0;
}

static size_t skip_space(const char *s, size_t n, bool python)
{
    size_t i = 0, k;
    while ((k = space_at(s + i, n - i, python)))
        i += k;
    return i;
}

static size_t trim_space(const char *s, size_t n, bool python)
{
    while (n) {
        size_t at = n - 1;
        while (at && ((unsigned char)s[at] & 0xC0) == 0x80)
            at--;
        if (space_at(s + at, n - at, python) != n - at)
            break;
        n = at;
    }
    return n;
}

/* turbo.trim(s): without white space at both ends, as `| trim` of published templates. */
static int bind_trim(lua_State *L)
{
    size_t n;
    if (lua_type(L, 1) != LUA_TSTRING)
        return luaL_error(L, "turbo.trim takes a string");
    const char *s = lua_tolstring(L, 1, &n);
    n = trim_space(s, n, true);
    size_t skip = skip_space(s, n, true);
    lua_pushlstring(L, s + skip, n - skip);
    return 1;
}

/* turbo.json(s): s as a JSON string, as `| tojson` writes it. */
static int bind_json(lua_State *L)
{
    static const char hex[] = "0123456789abcdef", from[] = "\b\f\n\r\t\"\\", into[] = "bfnrt\"\\";
    size_t n;
    luaL_Buffer b;
    if (lua_type(L, 1) != LUA_TSTRING)
        return luaL_error(L, "turbo.json takes a string");
    const char *s = lua_tolstring(L, 1, &n);
    luaL_buffinit(L, &b);
    luaL_addchar(&b, '"');
    for (size_t i = 0; i < n; i++) {
        const char *p = s[i] ? strchr(from, s[i]) : NULL;
        if (p) {
            luaL_addchar(&b, '\\');
            luaL_addchar(&b, into[p - from]);
        } else if ((unsigned char)s[i] < 0x20) {
            luaL_addstring(&b, "\\u00");
            luaL_addchar(&b, hex[s[i] >> 4 & 15]);
            luaL_addchar(&b, hex[s[i] & 15]);
        } else {
            luaL_addchar(&b, s[i]);
        }
    }
    luaL_addchar(&b, '"');
    luaL_pushresult(&b);
    return 1;
}

static int bindings(lua_State *L)
{
    lua_newtable(L);
    lua_pushcfunction(L, bind_template);
    lua_setfield(L, -2, "template");
    lua_pushcfunction(L, bind_trim);
    lua_setfield(L, -2, "trim");
    lua_pushcfunction(L, bind_json);
    lua_setfield(L, -2, "json");
    lua_setglobal(L, "turbo");
    return 0;
}

static int set_job(lua_State *L)
{
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_job);
    return 0;
}

/* The date as published templates write it: "26 Jul 2024". */
static void push_today(lua_State *L, const char *given)
{
    char text[32] = "";
    struct tm tm;
    time_t now = time(NULL);
    if (!given && localtime_r(&now, &tm))
        strftime(text, sizeof text, "%d %b %Y", &tm);
    lua_pushstring(L, given ? given : text);
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
    lua_createtable(L, 0, 3);
    push_today(L, j->opts->today);
    lua_setfield(L, -2, "today");
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

/* Does a special token take the white space behind it (or before it) into itself? The tokenizer is
 * asked: then name and blank together are one token. */
static bool swallows(const turbo_tokenizer_vtbl *v, const void *tok, const char *name, size_t len,
                     bool behind)
{
    char text[MAX_STOP + 1];
    int32_t ids[4];
    uint64_t n = 0;
    turbo_err none;
    if (len >= MAX_STOP)
        return false;
    memcpy(text + !behind, name, len);
    text[behind ? len : 0] = ' ';
    return !v->encode(tok, text, len + 1, TURBO_TOK_TRUSTED, ids, 4, &n, &none) && n == 1;
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

/* Text i without what the special tokens beside it swallow; a picture swallows nothing. */
static void strip_segment(const turbo_tokenizer_vtbl *v, const void *tok, const turbod_render *r,
                          size_t i, const char **text, size_t *len)
{
    const turbod_segment *g = &r->segments[i];
    size_t skip = skip_space(*text, *len, false);
    if (skip && i && !g[-1].image && swallows(v, tok, r->text.ptr + g[-1].at, g[-1].len, true)) {
        *text += skip;
        *len -= skip;
    }
    size_t keep = trim_space(*text, *len, false);
    if (keep < *len && i + 1 < r->n && !g[1].image &&
        swallows(v, tok, r->text.ptr + g[1].at, g[1].len, false))
        *len = keep;
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
            size_t len = g->len;
            strip_segment(v, tok, r, i, &text, &len);
            st = append_text(v, tok, text, len, first ? (uint32_t)TURBO_TOK_FIRST : 0, &out, &n,
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
