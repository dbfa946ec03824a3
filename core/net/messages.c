/* core/net/messages.c: the messages of a conversation, as text. Workers.
 * Texts point into the parsed body, or into strings joined from parts. */
#include <stdlib.h>
#include <string.h>

#include "net/gen.h"
#include "util/json.h"

#define MAX_MESSAGES 2048
#define MAX_PARTS 64
#define MAX_IMAGES 8 /* of a request */

static bool bad(turbod_exchange *x, size_t i, const char *what)
{
    char param[48];
    snprintf(param, sizeof param, "messages[%zu]", i);
    turbod_reply_error(x, 400, "invalid_value", param, "message %zu: %s", i, what);
    return false;
}

static bool no_media(turbod_exchange *x, size_t i, size_t part, const char *type)
{
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].content[%zu]", i, part);
    if (!strncmp(type, "image", 5) && !strcmp(type, "image_url"))
        turbod_reply_error(x, 400, "unsupported_content", param,
                           "this model takes no images; send text");
    else if (!strncmp(type, "image", 5))
        turbod_reply_error(x, 400, "unsupported_content", param,
                           "a part of type %.32s is not taken; images come as image_url", type);
    else
        turbod_reply_error(x, 400, "unsupported_content", param,
                           "a part of type %.32s is not taken; send parts of type text", type);
    return false;
}

/* The next picture of the messages, behind at bytes of its content. */
static bool add_image(turbod_exchange *x, size_t i, size_t part, const cJSON *p,
                      turbod_buf *warnings, turbod_messages *out, size_t at)
{
    char param[64];
    const turbod_service *svc = x->svc;
    if (!svc->engine || !turbod_engine_facts_of(svc->engine)->media.n_rows)
        return no_media(x, i, part, "image_url");
    snprintf(param, sizeof param, "messages[%zu].content[%zu]", i, part);
    if (out->n_images == MAX_IMAGES) {
        turbod_reply_error(x, 400, "invalid_value", param, "a request has at most %d images",
                           MAX_IMAGES);
        return false;
    }
    if (!turbod_picture_read(x, p, param, warnings, &out->images[out->n_images]))
        return false;
    out->image_at[out->n_images++] = at;
    out->v[i].n_images++;
    return true;
}

static bool is_text(const char *type)
{
    return !strcmp(type, "text") || !strcmp(type, "input_text");
}

/* Parts of type text, joined by a newline, and pictures between them. */
static bool join_parts(turbod_exchange *x, size_t i, const cJSON *parts, turbod_buf *warnings,
                       turbod_messages *out)
{
    turbod_buf b;
    size_t n = 0, texts = 0;
    turbod_buf_init(&b, (size_t)x->rules->body_limit + 1024);
    turbod_buf_add(&b, "", 0);
    for (const cJSON *p = parts->child; p; p = p->next, n++) {
        const cJSON *type = turbod_json_get(p, "type"), *text = turbod_json_get(p, "text");
        const cJSON *image = turbod_json_get(p, "image_url");
        bool ok = false, words = cJSON_IsString(type) && is_text(type->valuestring);
        if (n >= MAX_PARTS)
            bad(x, i, "more than 64 content parts");
        else if (!cJSON_IsObject(p) || !cJSON_IsString(type))
            bad(x, i, "a content part must be an object with a type");
        else if (!words && strcmp(type->valuestring, "image_url"))
            no_media(x, i, n, type->valuestring);
        else if (words && !cJSON_IsString(text))
            bad(x, i, "a part of type text needs a string text");
        else
            ok = words || add_image(x, i, n, p, warnings, out, b.len);
        for (const cJSON *f = ok ? p->child : NULL; f && ok; f = f->next)
            if (f != type && f != (words ? text : image))
                ok = turbod_unknown_field(x, warnings, "messages[].content[].", f->string);
        if (!ok) {
            turbod_buf_free(&b);
            return false;
        }
        if (words && texts++)
            turbod_buf_add(&b, "\n", 1);
        if (words)
            turbod_buf_str(&b, text->valuestring);
    }
    if (!n || b.failed) {
        turbod_buf_free(&b);
        return bad(x, i, n ? "the content is too long" : "content has no parts");
    }
    out->joined[i] = b.ptr;
    out->v[i].content = b.ptr;
    out->v[i].content_len = b.len;
    return true;
}

/* Members of a message: used, empty, or a word about them. */
static bool other_member(turbod_exchange *x, size_t i, const cJSON *f, turbod_buf *warnings)
{
    static const char *const inputs[] = {"reasoning_content", "reasoning", "refusal", "annotations"};
    static const char *const tools[] = {"tool_calls", "function_call", "tool_call_id", "audio"};
    if (cJSON_IsNull(f))
        return true;
    for (size_t k = 0; k < sizeof inputs / sizeof inputs[0]; k++)
        if (!strcmp(f->string, inputs[k]))
            return true; /* what an earlier answer carried beside its content; no part of a prompt */
    for (size_t k = 0; k < sizeof tools / sizeof tools[0]; k++)
        if (!strcmp(f->string, tools[k]))
            return (cJSON_IsArray(f) && !f->child)
                       ? true
                       : bad(x, i, "tools and audio are not supported by this version");
    return turbod_unknown_field(x, warnings, "messages[].", f->string);
}

static bool read_message(turbod_exchange *x, size_t i, const cJSON *v, turbod_buf *warnings,
                         turbod_messages *out)
{
    turbod_message *m = &out->v[i];
    if (!cJSON_IsObject(v))
        return bad(x, i, "must be an object with role and content");
    const cJSON *role = turbod_json_get(v, "role"), *content = turbod_json_get(v, "content");
    const cJSON *name = turbod_json_get(v, "name");
    if (!cJSON_IsString(role) || !role->valuestring[0] || strlen(role->valuestring) > 64)
        return bad(x, i, "role must be a string such as system, user or assistant");
    if (name && (!cJSON_IsString(name) || strlen(name->valuestring) > 256))
        return bad(x, i, "name must be a string of at most 256 bytes");
    for (const cJSON *f = v->child; f; f = f->next)
        if (f != role && f != content && f != name && !other_member(x, i, f, warnings))
            return false;
    m->role = strcmp(role->valuestring, "developer") ? role->valuestring : "system";
    m->name = name ? name->valuestring : NULL;
    if (cJSON_IsString(content)) {
        m->content = content->valuestring;
        m->content_len = strlen(content->valuestring);
        return true;
    }
    if (!cJSON_IsArray(content))
        return bad(x, i, "content must be a string or a list of parts");
    m->images = out->images + out->n_images;
    m->image_at = out->image_at + out->n_images;
    return join_parts(x, i, content, warnings, out);
}

bool turbod_messages_read(turbod_exchange *x, const cJSON *list, turbod_buf *warnings,
                          turbod_messages *out)
{
    size_t n = 0, i = 0;
    *out = (turbod_messages){0};
    if (!cJSON_IsArray(list) || !list->child) {
        turbod_reply_error(x, 400, "invalid_value", "messages",
                           "messages is %s; give a list with at least one message",
                           cJSON_IsArray(list) ? "an empty list" : turbod_json_kind(list));
        return false;
    }
    for (const cJSON *v = list->child; v; v = v->next)
        n++;
    if (n > MAX_MESSAGES) {
        turbod_reply_error(x, 400, "invalid_value", "messages",
                           "messages has %zu entries; at most %d are taken", n, MAX_MESSAGES);
        return false;
    }
    out->v = calloc(n, sizeof *out->v);
    out->joined = calloc(n, sizeof *out->joined);
    out->images = calloc(MAX_IMAGES, sizeof(turbod_image *));
    out->image_at = calloc(MAX_IMAGES, sizeof *out->image_at);
    out->n = n;
    if (!out->v || !out->joined || !out->images || !out->image_at) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        return false;
    }
    for (const cJSON *v = list->child; v; v = v->next, i++)
        if (!read_message(x, i, v, warnings, out))
            return false;
    return true;
}

void turbod_messages_free(turbod_messages *m)
{
    for (size_t i = 0; m->joined && i < m->n; i++)
        free(m->joined[i]);
    for (size_t i = 0; i < m->n_images; i++)
        turbod_image_release(m->images[i]);
    free(m->images);
    free(m->image_at);
    free(m->joined);
    free(m->v);
    *m = (turbod_messages){0};
}
