/* core/net/slots.c: GET /slots, POST /slots/{session}?action=save|restore|erase. Workers; GET on the daemon
 * thread. Names and replies are what other servers have; a slot here is a session. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/snapshot.h"
#include "net/gen.h"
#include "net/sessions.h"
#include "util/err.h"
#include "util/file.h"
#include "util/json.h"

void turbod_api_slots(turbod_exchange *x)
{
    turbod_sessions_json(x->http, x->label, &x->reply.body);
    x->reply.status = 200;
}

/* The value of action= in the query; NULL: none. */
static const char *action_of(const turbod_exchange *x)
{
    static const char *const names[] = {"save", "restore", "erase"};
    const char *q = strchr(x->raw_target, '?');
    for (; q; q = strchr(q + 1, '&'))
        for (size_t i = 0; i < 3 && !strncmp(q + 1, "action=", 7); i++) {
            size_t n = strcspn(q + 8, "&");
            if (n == strlen(names[i]) && !memcmp(q + 8, names[i], n))
                return names[i];
        }
    return NULL;
}

static bool path_id(const turbod_exchange *x, char id[TURBOD_SESSION_ID + 1])
{
    if (x->param.n < 1 || x->param.n > TURBOD_SESSION_ID)
        return false;
    memcpy(id, x->param.p, x->param.n);
    id[x->param.n] = '\0';
    return turbod_session_id_ok(id);
}

/* "filename" of the body. */
static bool read_name(turbod_exchange *x, const cJSON *body, bool needed, char name[129])
{
    const cJSON *v = turbod_json_get(body, "filename");
    for (const cJSON *f = body->child; f; f = f->next)
        if (f != v) {
            turbod_reply_error(x, 400, "unknown_field", f->string, "the field is filename");
            return false;
        }
    if (!needed)
        return true;
    if (cJSON_IsString(v) && strlen(v->valuestring) <= 128 && turbod_file_name_ok(v->valuestring)) {
        memcpy(name, v->valuestring, strlen(v->valuestring) + 1);
        return true;
    }
    turbod_reply_error(x, 400, "invalid_value", "filename",
                       "give filename: 1 to 128 of letters, digits, '.', '_' and '-', not beginning "
                       "with '.'");
    return false;
}

/* A session to put something into is one of the request's model; otherwise it knows its own. */
static bool take(turbod_exchange *x, const char *id, bool create, turbod_session **s)
{
    switch (turbod_session_take(x->http, x->label, id, create ? x->svc : NULL, create, s)) {
    case SESSION_OK: return true;
    case SESSION_BUSY:
        turbod_reply_error(x, 400, "session_busy", NULL,
                           "an answer is being made for this session; wait for its end");
        return false;
    case SESSION_OTHER_MODEL:
        turbod_reply_error(
            x, 400, "session_of_other_model", "model",
            "this session was begun with another model than \"%s\"; erase it first, or "
            "use another id",
            x->svc->name);
        return false;
    case SESSION_NONE:
        turbod_reply_error(x, 404, "session_not_found", NULL, "there is no session of this id");
        return false;
    case SESSION_NO_MEMORY:
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for a session");
        return false;
    default:
        turbod_reply_error(x, 429, "rate_limit_exceeded", NULL,
                           "all sessions are in use; try again later");
        x->reply.retry_after = 2;
        return false;
    }
}

static const char *folder_of(turbod_exchange *x)
{
    const turbod_conf *conf = __atomic_load_n(&x->svc->conf, __ATOMIC_ACQUIRE);
    if (conf->slot_save_path && *conf->slot_save_path)
        return conf->slot_save_path;
    turbod_reply_error(x, 400, "not_configured", NULL,
                       "snapshots are off; set slot_save_path in the server's conf");
    return NULL;
}

static void save(turbod_exchange *x, const char *id, const char *name)
{
    const char *folder = folder_of(x);
    turbod_session *s;
    turbod_buf note;
    turbo_err err = {{0}};
    if (!folder || !take(x, id, false, &s))
        return;
    if (turbod_dialogue_images(&s->dialogue)) {
        turbod_session_give(x->http, s);
        turbod_reply_error(x, 400, "unsupported_content", NULL,
                           "a session with images cannot be saved");
        return;
    }
    int64_t t0 = turbod_ms();
    turbod_buf_init(&note, (size_t)64 << 20);
    turbod_dialogue_pack(&s->dialogue, &note);
    turbod_snapshot snap = {.tenant = x->label,
                            .ids = s->dialogue.ids,
                            .n_ids = s->dialogue.n_ids,
                            .note = note.ptr,
                            .n_note = note.len};
    turbo_status st;
    if (note.failed)
        st = turbod_err(&err, TURBO_ENOMEM, "no memory for a snapshot");
    else
        st = turbod_snapshot_save(s->svc->engine, folder, name, &snap, &err);
    turbod_buf_free(&note);
    turbod_session_give(x->http, s);
    if (st) {
        turbod_reply_status(x, st, "filename", &err);
        return;
    }
    x->reply.status = 200;
    turbod_buf_printf(&x->reply.body,
                      "{\"id_slot\":\"%s\",\"filename\":\"%s\",\"n_saved\":%zu,\"n_tokens\":%zu,"
                      "\"n_written\":%llu,\"timings\":{\"save_ms\":%lld}}",
                      id, name, snap.n_kept, snap.n_ids, (unsigned long long)snap.bytes,
                      (long long)(turbod_ms() - t0));
}

static void restore(turbod_exchange *x, const char *id, const char *name)
{
    const char *folder = folder_of(x);
    turbod_session *s;
    turbod_dialogue fresh = {0};
    turbo_err err = {{0}};
    turbod_snapshot snap = {.tenant = x->label};
    if (!folder || !take(x, id, true, &s))
        return;
    int64_t t0 = turbod_ms();
    turbo_status st = turbod_snapshot_load(x->svc->engine, folder, name, &snap, &err);
    if (!st)
        st = turbod_dialogue_unpack(&fresh, snap.note, snap.n_note, snap.ids, snap.n_ids, &err);
    if (!st) {
        turbod_dialogue_free(&s->dialogue);
        s->dialogue = fresh;
    }
    free(snap.ids);
    free(snap.note);
    turbod_session_give(x->http, s);
    if (st == TURBO_ENOENT) {
        turbod_reply_error(x, 404, "snapshot_not_found", "filename", "there is no such snapshot");
        return;
    }
    if (st == TURBO_EINTERNAL) { /* not the file's fault */
        turbod_reply_status(x, st, "filename", &err);
        return;
    }
    if (st) {
        turbod_clean_message(err.text);
        int status = st == TURBO_ENOMEM ? 503 : st == TURBO_EIO ? 500 : 400;
        turbod_reply_error(x, status, "snapshot_refused", "filename", "%s", err.text);
        return;
    }
    x->reply.status = 200;
    turbod_buf_printf(&x->reply.body,
                      "{\"id_slot\":\"%s\",\"filename\":\"%s\",\"n_restored\":%zu,\"n_tokens\":%zu,"
                      "\"n_read\":%llu,\"timings\":{\"restore_ms\":%lld}}",
                      id, name, snap.n_kept, snap.n_ids, (unsigned long long)snap.bytes,
                      (long long)(turbod_ms() - t0));
}

static void erase(turbod_exchange *x, const char *id)
{
    turbod_session *s;
    if (!take(x, id, false, &s))
        return;
    size_t n = s->dialogue.n_ids;
    turbod_dialogue_cut(&s->dialogue, 0); /* an empty session goes when it is given back */
    turbod_session_give(x->http, s);
    x->reply.status = 200;
    turbod_buf_printf(&x->reply.body, "{\"id_slot\":\"%s\",\"n_erased\":%zu}", id, n);
}

void turbod_api_slot(turbod_exchange *x)
{
    char id[TURBOD_SESSION_ID + 1], name[129];
    const char *action = action_of(x);
    cJSON *body = NULL;
    if (!turbod_model_ready(x))
        return;
    if (!path_id(x, id))
        turbod_reply_error(x, 404, "session_not_found", NULL, "there is no session of this id");
    else if (!action)
        turbod_reply_error(x, 400, "invalid_value", "action",
                           "give ?action=save, ?action=restore or ?action=erase");
    else if ((body = turbod_body_json(x)) && read_name(x, body, *action != 'e', name)) {
        if (*action == 's')
            save(x, id, name);
        else if (*action == 'r')
            restore(x, id, name);
        else
            erase(x, id);
    }
    cJSON_Delete(body);
}
