/* core/cli/bench_event.c: what one event of a streamed answer says. Main thread.
 *
 * Nearly all events carry a piece of text and nothing else that is measured. A JSON tree of each would
 * make the client the limit, so a key is looked for as its quoted bytes: inside a JSON string every quote
 * has a backslash before it, so `"text"` in the bytes is a string of its own and, before a colon, a key.
 * Only events with an error, a finish_reason, or usage and no text are parsed. */
#include <string.h>

#include "cli/bench.h"
#include "util/json.h"

/* The byte where the value of a key begins, at or behind from; NULL: no such key. */
static const char *value_of(const char *from, const char *end, const char *quoted)
{
    size_t len = strlen(quoted);
    for (const char *p = from; (p = memmem(p, (size_t)(end - p), quoted, len)); p += len) {
        const char *v = p + len;
        while (v < end && (*v == ' ' || *v == '\t'))
            v++;
        if (v == end || *v != ':')
            continue;
        for (v++; v < end && (*v == ' ' || *v == '\t'); v++)
            ;
        return v < end ? v : NULL;
    }
    return NULL;
}

/* Is there a key whose value is a string that is not empty? */
static bool has_text(const char *p, const char *end, const char *quoted)
{
    while ((p = value_of(p, end, quoted)))
        if (end - p > 1 && p[0] == '"' && p[1] != '"')
            return true;
    return false;
}

static int32_t count_of(const cJSON *o, const char *key)
{
    int64_t n;
    return turbod_json_int(turbod_json_get(o, key), 0, INT32_MAX, &n) ? (int32_t)n : 0;
}

static bool read_tree(const char *data, size_t n, cli_event *e)
{
    cJSON *j = NULL;
    turbo_err err;
    if (turbod_json_parse(data, n, &turbod_json_request, &j, &err))
        return false;
    const cJSON *usage = turbod_json_get(j, "usage"), *error = turbod_json_get(j, "error");
    const cJSON *choice = cJSON_GetArrayItem(turbod_json_get(j, "choices"), 0);
    const cJSON *why = turbod_json_get(choice, "finish_reason");
    if (cJSON_IsObject(usage)) {
        e->usage = true;
        e->prompt = count_of(usage, "prompt_tokens");
        e->completion = count_of(usage, "completion_tokens");
        e->cached = count_of(turbod_json_get(usage, "prompt_tokens_details"), "cached_tokens");
    }
    if (cJSON_IsString(why)) {
        e->finished = true;
        e->length = !strcmp(why->valuestring, "length");
    }
    if (error) {
        const cJSON *m = turbod_json_get(error, "message");
        const char *text = cJSON_IsString(m)       ? m->valuestring
                           : cJSON_IsString(error) ? error->valuestring
                                                   : "an error without a message";
        e->error = true;
        strncpy(e->message, text, sizeof e->message - 1);
    }
    cJSON_Delete(j);
    return true;
}

bool cli_event_read(const char *data, size_t n, cli_event *e)
{
    const char *end = data + n, *v;
    memset(e, 0, sizeof *e);
    if (n == 6 && !memcmp(data, "[DONE]", 6)) {
        e->done = true;
        return true;
    }
    if (n < 2 || data[0] != '{' || data[n - 1] != '}')
        return false;
    e->text = has_text(data, end, "\"text\"") || has_text(data, end, "\"content\"") ||
              has_text(data, end, "\"reasoning_content\"") || has_text(data, end, "\"arguments\"");
    bool usage = (v = value_of(data, end, "\"usage\"")) && *v == '{';
    const char *count = usage ? value_of(v, end, "\"completion_tokens\"") : NULL;
    bool tree = ((v = value_of(data, end, "\"finish_reason\"")) && *v == '"') ||
                ((v = value_of(data, end, "\"error\"")) && *v != 'n');
    if (e->text && count)
        for (; count < end && *count >= '0' && *count <= '9' && e->so_far < INT32_MAX / 10; count++)
            e->so_far = 10 * e->so_far + (*count - '0');
    tree |= usage && !e->text;
    return !tree || read_tree(data, n, e);
}
