/* core/net/pictures.c: a part of type image_url to a picture. Workers. Only data URIs are taken: the server
 * fetches nothing and opens no file for a client. */
#include <stdlib.h>
#include <string.h>

#include "net/gen.h"
#include "util/err.h"
#include "util/json.h"

static bool bad(turbod_exchange *x, const char *param, const char *what)
{
    turbod_reply_error(x, 400, "invalid_image", param, "%s", what);
    return false;
}

static int digit(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* RFC 4648 section 4, to the letter: padding, no other byte, and no bits behind the last one. The result is
 * the caller's; NULL with *why: it is not base64, NULL alone: no memory. */
static uint8_t *unbase64(const char *s, size_t len, size_t *n, const char **why)
{
    size_t pad = len && s[len - 1] == '=' ? len > 1 && s[len - 2] == '=' ? 2 : 1 : 0;
    *why = NULL;
    if (!len || len % 4) {
        *why = len ? "the image is cut off: its base64 has a length that is no multiple of 4"
                   : "the image is empty";
        return NULL;
    }
    uint8_t *out = calloc(len / 4, 3), *to = out;
    for (size_t i = 0; out && i < len; i += 4) {
        uint32_t bits = 0;
        size_t stuffed = i + 4 == len ? pad : 0;
        for (size_t k = 0; k < 4; k++) {
            int d = k < 4 - stuffed ? digit((unsigned char)s[i + k]) : 0;
            if (d < 0)
                *why = "the image is not base64: letters, digits, + and / only, = at the end";
            bits = bits << 6 | (uint32_t)(d < 0 ? 0 : d);
        }
        if (stuffed && bits & (stuffed == 1 ? 0xffu : 0xffffu))
            *why = "the image is not base64: bits are left over at its end";
        if (*why) {
            free(out);
            return NULL;
        }
        for (int k = 0; k < 3 - (int)stuffed; k++)
            *to++ = (uint8_t)(bits >> (16 - 8 * k));
    }
    *n = out ? (size_t)(to - out) : 0;
    return out;
}

/* Behind "data:TYPE;base64,", or NULL with the refusal. *png: what TYPE says. */
static const char *payload(turbod_exchange *x, const char *url, const char *param, bool *png)
{
    static const struct {
        const char *prefix;
        bool png;
    } kinds[] = {
        {"data:image/jpeg;base64,", false},
        {"data:image/jpg;base64,", false},
        {"data:image/png;base64,", true},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strncmp(url, kinds[i].prefix, strlen(kinds[i].prefix))) {
            *png = kinds[i].png;
            return url + strlen(kinds[i].prefix);
        }
    if (!strncmp(url, "data:image/", 11))
        bad(x, param,
            "this kind of image is not taken; send data:image/png;base64,... or "
            "data:image/jpeg;base64,...");
    else
        bad(x, param,
            "only data URIs are taken, data:image/png;base64,...: this server fetches "
            "nothing from other addresses");
    return NULL;
}

static bool prepare(turbod_exchange *x, const char *param, const uint8_t *bytes, size_t n, bool png,
                    turbod_image **out)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(x->svc->engine);
    turbo_err err = {{0}};
    if (n >= 4 && png != !memcmp(bytes, "\x89PNG", 4) &&
        (!memcmp(bytes, "\x89PNG", 4) || !memcmp(bytes, "\xff\xd8\xff", 3)))
        return bad(x, param, "the data URI names another type than the image has");
    turbo_status st = turbod_image_new(bytes, n, &f->media.fit, out, &err);
    if (!st)
        return true;
    if (st == TURBO_EINVAL || st == TURBO_EUNSUPPORTED || st == TURBO_EDATA || st == TURBO_ELIMIT)
        return bad(x, param, err.text);
    turbod_reply_status(x, st, param, &err);
    return false;
}

bool turbod_picture_read(turbod_exchange *x, const cJSON *part, const char *param,
                         turbod_buf *warnings, turbod_image **out)
{
    const cJSON *v = turbod_json_get(part, "image_url");
    const cJSON *url = cJSON_IsObject(v) ? turbod_json_get(v, "url") : v;
    const cJSON *detail = cJSON_IsObject(v) ? turbod_json_get(v, "detail") : NULL;
    const char *why, *text;
    bool png;
    size_t n = 0;
    if (!cJSON_IsString(url))
        return bad(x, param, "a part of type image_url needs image_url: {\"url\": \"data:...\"}");
    for (const cJSON *f = cJSON_IsObject(v) ? v->child : NULL; f; f = f->next)
        if (f != url && f != detail &&
            !turbod_unknown_field(x, warnings, "messages[].content[].image_url.", f->string))
            return false;
    /* Every picture of this model has one size; a wish for another is noted. */
    if (detail && !cJSON_IsNull(detail) &&
        !(cJSON_IsString(detail) && !strcmp(detail->valuestring, "auto")) &&
        !turbod_unknown_field(x, warnings, "messages[].content[].image_url.", "detail"))
        return false;
    if (!(text = payload(x, url->valuestring, param, &png)))
        return false;
    uint8_t *bytes = unbase64(text, strlen(text), &n, &why);
    if (!bytes && why)
        return bad(x, param, why);
    if (!bytes) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        return false;
    }
    bool ok = prepare(x, param, bytes, n, png, out);
    free(bytes);
    return ok;
}
