/* core/net/sessions.c: see sessions.h. One list: a few hundred sessions, looked up once a turn. */
#include "net/sessions.h"

#include <stdlib.h>
#include <string.h>

#include "sched/request.h"

bool turbod_session_id_ok(const char *id)
{
    static const char ok[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strlen(id);
    return n >= 1 && n <= TURBOD_SESSION_ID && strspn(id, ok) == n;
}

static turbod_session *find(turbod_http *h, const char *label, const char *id)
{
    turbod_session *s = h->sessions;
    while (s && (strcmp(s->label, label) || strcmp(s->id, id) || s->doomed))
        s = s->next;
    return s;
}

static void drop(turbod_http *h, turbod_session *s)
{
    turbod_session **at = &h->sessions;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    h->n_sessions--;
    turbod_dialogue_free(&s->dialogue);
    free(s);
}

/* Room for one more: the idle session used longest ago goes. */
static bool make_room(turbod_http *h)
{
    turbod_session *oldest = NULL;
    if (h->n_sessions < h->max_sessions)
        return true;
    for (turbod_session *s = h->sessions; s; s = s->next)
        if (!s->busy && (!oldest || s->used_at < oldest->used_at))
            oldest = s;
    if (oldest)
        drop(h, oldest);
    return oldest != NULL;
}

turbod_session_result turbod_session_take(turbod_http *h, const char *label, const char *id,
                                          turbod_service *svc, bool create, turbod_session **out)
{
    turbod_session_result result = SESSION_OK;
    pthread_mutex_lock(&h->session_mu);
    turbod_session *s = find(h, label, id);
    if (!s && !create) {
        result = SESSION_NONE;
    } else if (!s) {
        bool room = make_room(h);
        s = room ? calloc(1, sizeof *s) : NULL;
        if (s) {
            memcpy(s->id, id, strlen(id) + 1);
            strncpy(s->label, label, sizeof s->label - 1);
            s->svc = svc;
            s->next = h->sessions;
            h->sessions = s;
            h->n_sessions++;
        } else {
            result = room ? SESSION_NO_MEMORY : SESSION_FULL;
        }
    } else if (svc && s->svc != svc) {
        result = SESSION_OTHER_MODEL;
    } else if (s->busy) {
        result = SESSION_BUSY;
    }
    if (result == SESSION_OK) {
        s->busy = true;
        *out = s;
    }
    pthread_mutex_unlock(&h->session_mu);
    return result;
}

void turbod_session_give(turbod_http *h, turbod_session *s)
{
    pthread_mutex_lock(&h->session_mu);
    s->busy = false;
    s->running = NULL;
    s->used_at = turbod_ms();
    if (s->doomed || !s->dialogue.n)
        drop(h, s);
    pthread_mutex_unlock(&h->session_mu);
}

bool turbod_session_end(turbod_http *h, const char *label, const char *id)
{
    pthread_mutex_lock(&h->session_mu);
    turbod_session *s = find(h, label, id);
    if (s && s->busy)
        s->doomed = true;
    else if (s)
        drop(h, s);
    pthread_mutex_unlock(&h->session_mu);
    return s != NULL;
}

void turbod_session_runs(turbod_http *h, turbod_session *s, turbod_request *r)
{
    pthread_mutex_lock(&h->session_mu);
    s->running = r;
    pthread_mutex_unlock(&h->session_mu);
}

bool turbod_session_cancel(turbod_http *h, const char *label, const char *id)
{
    pthread_mutex_lock(&h->session_mu);
    turbod_session *s = find(h, label, id);
    bool runs = s && s->running;
    if (runs)
        turbod_request_cancel(s->running);
    pthread_mutex_unlock(&h->session_mu);
    return runs;
}

void turbod_session_new_id(turbod_http *h, const char *label, char id[TURBOD_SESSION_ID + 1])
{
    pthread_mutex_lock(&h->session_mu);
    do
        snprintf(id, TURBOD_SESSION_ID + 1, "%llu", (unsigned long long)++h->last_session);
    while (find(h, label, id));
    pthread_mutex_unlock(&h->session_mu);
}

void turbod_sessions_json(turbod_http *h, const char *label, turbod_buf *b)
{
    bool any = false;
    int64_t now = turbod_ms();
    turbod_buf_str(b, "[");
    pthread_mutex_lock(&h->session_mu);
    for (const turbod_session *s = h->sessions; s; s = s->next) {
        if (strcmp(s->label, label) || s->doomed)
            continue;
        turbod_buf_printf(b, "%s{\"id\":\"%s\",\"model\":\"", any ? "," : "", s->id);
        turbod_buf_json(b, s->svc->name, strlen(s->svc->name));
        turbod_buf_printf(b, "\",\"is_processing\":%s", s->busy ? "true" : "false");
        if (!s->busy) /* a busy one belongs to whoever has it */
            turbod_buf_printf(b, ",\"n_messages\":%zu,\"n_tokens\":%zu,\"idle_ms\":%lld",
                              s->dialogue.n, s->dialogue.n_ids, (long long)(now - s->used_at));
        turbod_buf_str(b, "}");
        any = true;
    }
    pthread_mutex_unlock(&h->session_mu);
    turbod_buf_str(b, "]");
}

void turbod_sessions_free(turbod_http *h)
{
    while (h->sessions)
        drop(h, h->sessions);
}
