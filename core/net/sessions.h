/* core/net/sessions.h: dialogues that the server keeps for its clients, by the label of their key and an id
 * of their choice. Any thread. A session that is in use belongs to whoever took it. */
#ifndef TURBOD_SESSIONS_H
#define TURBOD_SESSIONS_H

#include "chat/dialogue.h"
#include "net/net.h"

#define TURBOD_SESSION_ID 64

typedef struct turbod_session {
    struct turbod_session *next;
    char label[65], id[TURBOD_SESSION_ID + 1];
    turbod_service *svc; /* its model: histories are token ids of one vocabulary */
    turbod_dialogue dialogue;
    bool busy, doomed; /* doomed: it goes when it is given back */
    int64_t used_at;   /* ms */
    turbod_request *running; /* what a cancel ends; guarded by the table's lock */
} turbod_session;

typedef enum {
    SESSION_OK,
    SESSION_BUSY,
    SESSION_NONE,
    SESSION_FULL,
    SESSION_OTHER_MODEL,
    SESSION_NO_MEMORY
} turbod_session_result;

bool turbod_session_id_ok(const char *id); /* 1..64 of A-Z a-z 0-9 . _ - */
/* Takes a session of this model (NULL: of any) for use; creates it when asked to, for which a model is
 * needed. FULL: all places are taken by sessions in use; an idle
 * one that was used longest ago makes room. */
turbod_session_result turbod_session_take(turbod_http *h, const char *label, const char *id,
                                          turbod_service *svc, bool create, turbod_session **out);
void turbod_session_give(turbod_http *h, turbod_session *s);
/* Ends a session: at once, or when its answer is complete. False: there is none. */
bool turbod_session_end(turbod_http *h, const char *label, const char *id);
/* The request that runs for s, or NULL when it is over. */
void turbod_session_runs(turbod_http *h, turbod_session *s, turbod_request *r);
/* Cancels what runs for a session; false when nothing does. */
bool turbod_session_cancel(turbod_http *h, const char *label, const char *id);
/* An id that is free. */
void turbod_session_new_id(turbod_http *h, const char *label, char id[TURBOD_SESSION_ID + 1]);
/* A JSON list of a label's sessions. */
void turbod_sessions_json(turbod_http *h, const char *label, turbod_buf *b);
void turbod_sessions_free(turbod_http *h);

#endif
