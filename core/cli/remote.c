/* core/cli/remote.c: see remote.h. */
#include "cli/remote.h"

#include <stdlib.h>
#include <string.h>

#include "util/err.h"
#include "util/json.h"

#define MAX_KEY 512

static turbo_status authorise(cli_remote *r, const char *key, turbo_err *err)
{
    char line[MAX_KEY + 32];
    if (!key)
        key = getenv("TURBO_API_KEY");
    if (!key || !*key)
        return TURBO_OK;
    if (strlen(key) > MAX_KEY || strpbrk(key, "\r\n"))
        return turbod_err(err, TURBOD_EUSAGE, "the API key has at most %d bytes, one line",
                          MAX_KEY);
    snprintf(line, sizeof line, "Authorization: Bearer %s", key);
    struct curl_slist *more = curl_slist_append(r->headers, line);
    if (!more)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a connection");
    r->headers = more;
    return TURBO_OK;
}

turbo_status cli_remote_open(cli_remote *r, const cli_args *a, const char *url, size_t most_body,
                             turbo_err *err)
{
    size_t n = strlen(url);
    *r = (cli_remote){0};
    turbod_buf_init(&r->body, most_body);
    while (n && url[n - 1] == '/')
        n--;
    if (n > 3 && !memcmp(url + n - 3, "/v1", 3))
        n -= 3;
    bool scheme = !strncmp(url, "http://", 7) || !strncmp(url, "https://", 8);
    if (n + 8 > sizeof r->base)
        return turbod_err(err, TURBOD_EUSAGE, "the URL is too long");
    snprintf(r->base, sizeof r->base, "%s%.*s", scheme ? "" : "http://", (int)n, url);
    r->curl = curl_easy_init();
    r->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (!r->curl || !r->headers)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a connection");
    return authorise(r, cli_text(a, "api-key"), err);
}

void cli_remote_close(cli_remote *r)
{
    turbod_buf_free(&r->body);
    curl_slist_free_all(r->headers);
    curl_easy_cleanup(r->curl);
    *r = (cli_remote){0};
}

static size_t keep_body(char *data, size_t one, size_t n, void *ctx)
{
    (void)one; /* always 1 */
    return turbod_buf_add(&((cli_remote *)ctx)->body, data, n) ? n : 0;
}

void cli_remote_prepare(cli_remote *r, const char *path, const char *body)
{
    char url[1200];
    snprintf(url, sizeof url, "%s%s", r->base, path);
    r->why[0] = '\0';
    turbod_buf_clear(&r->body);
    turbod_buf_str(&r->body, "");
    curl_easy_reset(r->curl);
    curl_easy_setopt(r->curl, CURLOPT_URL, url);
    curl_easy_setopt(r->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(r->curl, CURLOPT_HTTPHEADER, r->headers);
    curl_easy_setopt(r->curl, CURLOPT_ERRORBUFFER, r->why);
    curl_easy_setopt(r->curl, CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(r->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(r->curl, CURLOPT_WRITEFUNCTION, keep_body);
    curl_easy_setopt(r->curl, CURLOPT_WRITEDATA, (void *)r);
    if (body) {
        curl_easy_setopt(r->curl, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(r->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    }
}

turbo_status cli_remote_perform(cli_remote *r, long *status, turbo_err *err)
{
    CURLcode c = curl_easy_perform(r->curl);
    *status = 0;
    curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, status);
    if (c == CURLE_COULDNT_CONNECT)
        return turbod_err(err, TURBO_EIO, "%s: %s; is turbod running there?", r->base, r->why);
    if (c != CURLE_OK)
        return turbod_err(err, TURBO_EIO, "%s: %s", r->base,
                          *r->why ? r->why : curl_easy_strerror(c));
    return TURBO_OK;
}

turbo_status cli_remote_refused(const cli_remote *r, long status, turbo_err *err)
{
    cJSON *j = NULL;
    const cJSON *m = NULL;
    turbo_err ignored;
    if (r->body.len &&
        !turbod_json_parse(r->body.ptr, r->body.len, &turbod_json_request, &j, &ignored))
        m = turbod_json_get(turbod_json_get(j, "error"), "message");
    turbo_status st = turbod_err(err, status == 429 || status >= 500 ? TURBO_EBUSY : TURBO_EINVAL,
                                 "the server answered %ld%s%s%s", status,
                                 cJSON_IsString(m) ? ": " : "; is this turbod?",
                                 cJSON_IsString(m) ? m->valuestring : "",
                                 status == 401 ? "; give --api-key KEY" : "");
    cJSON_Delete(j);
    return st;
}
