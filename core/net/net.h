/* core/net/net.h: what the files of net/ share. Nothing outside net/ includes this.
 *
 * Threads: the door (accept, head scan, deadlines, pings), the daemons (libmicrohttpd: heads, bodies,
 * bytes out; a connection stays with one of the two), the workers (a complete body to a submitted generation or a reply), the writer (bytes of a stream),
 * the engine's
 * (events). An exchange is one request with its answer; it lives until its last reference is gone.
 * Lock order: http.mu before exchange.mu; libmicrohttpd's own locks come last. */
#ifndef TURBOD_NET_H
#define TURBOD_NET_H

#include <microhttpd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>

#include "net/head.h"
#include "net/http.h"
#include "util/buf.h"

#define TURBOD_N_WORKERS 2 /* of each lane */
#define TURBOD_MAX_KEYS 1024
#define TURBOD_BODY_BUDGET ((uint64_t)512 << 20) /* bodies of all exchanges together */
#define TURBOD_MAX_PER_CONNECTION 1000           /* requests on one connection */

typedef struct turbod_exchange turbod_exchange;
typedef struct turbod_gen turbod_gen;
struct turbod_session;

/* ---- configuration of the network side: immutable, counted, swapped as a whole ------------------ */

typedef struct turbod_key {
    char label[65];
    bool admin;
    uint8_t digest[32];
} turbod_key;

typedef struct turbod_rules {
    _Atomic int refs;
    turbod_key *keys;
    int n_keys; /* 0: no key is asked for */
    char *hosts, *origins; /* comma-separated */
    char *bound;           /* the address the server listens on */
    uint64_t body_limit;
    int64_t header_ms, body_ms, idle_ms, send_ms, request_ms, queue_ms, ping_ms;
    bool metrics_open, metrics_vllm;
} turbod_rules;

turbo_status turbod_rules_new(const turbod_conf *c, turbod_rules **out, turbo_err *err);
void turbod_rules_release(turbod_rules *r);
/* Who presents this Authorization header? NULL: nobody. Takes the same time for every wrong key. */
const turbod_key *turbod_rules_who(const turbod_rules *r, turbod_text authorization);
bool turbod_rules_host(const turbod_rules *r, turbod_text host);
bool turbod_rules_origin(const turbod_rules *r, turbod_text origin);

/* ---- connections ---------------------------------------------------------------------------------- */

typedef enum { CLIENT_PEEK, CLIENT_LINGER, CLIENT_DAEMON } turbod_client_phase;

/* One accepted socket. In http.clients under http.mu from accept to close. */
typedef struct turbod_client {
    struct turbod_client *prev, *next;
    int fd;
    uint32_t generation; /* tells a reused fd from its former owner */
    struct sockaddr_storage addr;
    socklen_t addr_len;
    unsigned char ip[16]; /* what counts as one address: IPv4, or the /64 of IPv6 */
    bool loopback, got_bytes;
    turbod_client_phase phase;
    int64_t deadline; /* PEEK, LINGER */
    /* DAEMON */
    struct turbod_loop *loop; /* whose connection it is; set once, read by any thread */
    int n_requests;
    bool gone; /* the peer closed its side, or the connection is broken */
    bool cut;  /* the door shut it down; the daemon will close it */
    int64_t idle_since;
    turbod_exchange *exchange; /* being answered, or NULL */
    uint64_t acked;            /* bytes the peer had confirmed at ... */
    int64_t acked_at;          /* ... this time; 0: nothing is under way */
} turbod_client;

/* ---- replies -------------------------------------------------------------------------------------- */

typedef struct turbod_reply {
    int status; /* 0: none yet */
    bool close, stream, want_key;
    int retry_after; /* seconds, 0 none */
    const char *type;  /* Content-Type; NULL: application/json */
    const char *allow; /* Allow header, or NULL */
    turbod_buf body;
} turbod_reply;

/* {"error":{...}} into the exchange's reply; overwrites what was there. param may be NULL. The text
 * passes a filter that takes out paths and addresses. */
void turbod_reply_error(turbod_exchange *x, int status, const char *code, const char *param,
                        const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* The same for a failure of a lower layer. */
void turbod_reply_status(turbod_exchange *x, turbo_status st, const char *param,
                         const turbo_err *err);
/* Appends {"error":{...}}. */
void turbod_error_json(turbod_buf *b, int status, const char *code, const char *param,
                       const char *message);
void turbod_clean_message(char *text); /* paths and addresses out */
struct MHD_Response *turbod_reply_response(turbod_exchange *x);

/* ---- exchanges ------------------------------------------------------------------------------------- */

typedef enum { STAGE_HEAD, STAGE_BODY, STAGE_WORK, STAGE_REPLY } turbod_stage;

typedef struct turbod_route turbod_route;

struct turbod_exchange {
    turbod_exchange *prev, *next; /* http.exchanges, under http.mu */
    turbod_exchange *next_job;
    turbod_http *http;
    /* The model it is about: of the body, else of ?model=, else the first. Set by turbod_route_judge, then
     * by the worker that reads the body; NULL for what was refused before a route was looked for. */
    turbod_service *svc;
    turbod_rules *rules; /* of the time it began */
    struct MHD_Connection *conn;
    turbod_client *client; /* valid until the completed callback */
    _Atomic int refs;

    /* daemon thread; read-only for the others once the body is complete */
    char *raw_target; /* as sent, NUL-terminated */
    char method[33], id[72], origin[256];
    const turbod_route *route;
    turbod_text param; /* rest of the path behind a prefix route, inside raw_target */
    char label[65];    /* of the key, "-" none */
    bool admin, strict, head_was_seen, discard, force_close, own_id;
    turbod_buf body;
    _Atomic uint64_t charged; /* to http.body_bytes */
    int64_t t0;
    _Atomic int stage;
    _Atomic int64_t stage_since; /* ms */

    pthread_mutex_t mu; /* guards what follows */
    bool suspended, job_done, reply_ready, gone, over, ping;
    turbod_reply reply;
    turbod_gen *gen; /* set once, by a worker */
    turbod_buf out;  /* bytes of a stream not yet handed to the daemon */
    size_t out_at;
    /* While a stream's connection is suspended with nothing under way, the writer has its socket. */
    bool chunked, direct, queued; /* it may; it does now; it is in the writer's queue */
    turbod_exchange *next_write;
    turbod_buf rest; /* of a chunk that the socket took in part; it goes before anything else */
    int64_t last_out; /* ms */
    int64_t t_first;  /* first token */
    int left; /* LEFT_..., fixed when the client was seen to leave */
};

int64_t turbod_ms(void);
void turbod_exchange_ref(turbod_exchange *x);
bool turbod_exchange_try_ref(turbod_exchange *x); /* false: it is being freed; http.mu is held */
void turbod_exchange_release(turbod_exchange *x);
/* Something changed: wakes the connection when it sleeps. x->mu is held. */
void turbod_exchange_wake_locked(turbod_exchange *x);
/* The LEFT_ kind of a client that leaves now. x->mu is held. */
int turbod_exchange_phase_locked(const turbod_exchange *x);
/* The client left: what runs for it ends. Any thread; takes x->mu. */
void turbod_exchange_gone(turbod_exchange *x);

/* ---- routes ---------------------------------------------------------------------------------------- */

typedef enum { NEEDS_NOTHING, NEEDS_KEY, NEEDS_METRICS, NEEDS_ADMIN } turbod_need;

struct turbod_route {
    const char *path; /* exact; with a trailing '*' a prefix and one more path segment or more */
    const char *method;
    turbod_need need;
    bool model; /* refused with 503 unless the model is ready */
    void (*handle)(turbod_exchange *x); /* fills x->reply, or starts a generation */
};

/* Host, origin, key, route, type and size of a request. Fills x->route or x->reply. */
void turbod_route_judge(turbod_exchange *x, const turbod_head *h);

/* The model of a request, models.c. False: the reply has the refusal. query: behind '?' of a target, may
 * be empty; several model= count as the first. */
bool turbod_choose_by_query(turbod_exchange *x, turbod_text query);
/* x->svc can be used now. */
bool turbod_model_ready(turbod_exchange *x);

void turbod_api_chat(turbod_exchange *x);
void turbod_api_completions(turbod_exchange *x);
void turbod_api_interactive(turbod_exchange *x);
void turbod_api_slots(turbod_exchange *x);
void turbod_api_slot(turbod_exchange *x);
void turbod_api_policies(turbod_exchange *x);
void turbod_api_policy(turbod_exchange *x);
void turbod_api_models(turbod_exchange *x);
void turbod_api_model(turbod_exchange *x);
void turbod_api_health(turbod_exchange *x);
void turbod_api_ready(turbod_exchange *x);
void turbod_api_metrics(turbod_exchange *x);
void turbod_api_tokenize(turbod_exchange *x);
void turbod_api_detokenize(turbod_exchange *x);
void turbod_api_template(turbod_exchange *x);
void turbod_api_props(turbod_exchange *x);
void turbod_api_version(turbod_exchange *x);
void turbod_api_abort(turbod_exchange *x);

/* ---- the server ------------------------------------------------------------------------------------ */

/* What was under way when a client left. NONE: it has not, or was not noticed before the end. */
enum { LEFT_BODY, LEFT_QUEUE, LEFT_PREFILL, LEFT_DECODE, LEFT_SEND, LEFT_KINDS, LEFT_NONE };

enum { DAEMON_SMALL, DAEMON_LARGE };

/* Complete bodies wait for a worker of their lane. Bodies that speak of pictures have one of their own: a
 * picture may take seconds to decode, and texts do not wait for that. */
enum { LANE_TEXT, LANE_PICTURES, LANES };
typedef struct turbod_lane {
    struct turbod_http *http;
    pthread_cond_t wake;
    turbod_exchange *head, *tail;
} turbod_lane;

#define TURBOD_SMALL_HEAD 4096 /* bytes, and ... */
#define TURBOD_SMALL_FIELDS 24 /* ... fields of a head that still goes to SMALL */

typedef struct turbod_loop turbod_loop; /* loop.c: a libmicrohttpd daemon and its thread */

struct turbod_http {
    turbod_services *models;
    /* Two, because libmicrohttpd keeps and clears a connection's whole memory from its first request
     * on: SMALL makes 20,000 idle connections cheap, LARGE takes those that begin with a large head. */
    turbod_loop *loops[2];
    int port, listen_fd, epoll_fd, wake_fd, spare_fd;
    int max_connections, max_per_ip;
    pthread_t door, workers[LANES * TURBOD_N_WORKERS];
    int n_workers;
    bool door_started, writer_started;
    pthread_t writer;
    char *door_space; /* where the door looks at heads */
    _Atomic bool quiet, ending, stopping; /* no new requests; all answers end; threads end */

    pthread_mutex_t mu; /* guards what follows */
    turbod_rules *rules;
    turbod_client *clients;
    int n_clients;
    turbod_client **by_fd;
    size_t n_by_fd;
    uint32_t generation;
    turbod_exchange *exchanges; /* alive, also behind their connection's end */
    int n_exchanges, n_answering; /* the latter: the connection still waits */

    pthread_mutex_t job_mu; /* guards the queues of the lanes */
    turbod_lane lanes[LANES];

    pthread_mutex_t writer_mu; /* guards what follows; taken last */
    pthread_cond_t writer_wake;
    turbod_exchange *write_head, *write_tail;
    bool writer_sleeps;

    pthread_mutex_t session_mu; /* guards what follows */
    struct turbod_session *sessions;
    int n_sessions, max_sessions;
    uint64_t last_session;

    _Atomic uint64_t body_bytes;
    _Atomic uint64_t responses[6]; /* by hundreds */
    _Atomic uint64_t left[LEFT_KINDS];
    _Atomic uint64_t refused_connections;
};

turbod_rules *turbod_http_rules(turbod_http *h); /* a reference */
bool turbod_job_push(turbod_http *h, turbod_exchange *x); /* false: the workers have stopped */
/* Aborts the generations of a request id (NULL: all) that came with a key's label (NULL: any).
 * -1: no memory. */
int turbod_http_abort(turbod_http *h, const char *id, const char *label);
void *turbod_worker_main(void *lane);

#define TURBOD_BACKLOG 4096 /* connects that wait for accept(); the kernel may allow fewer */
/* listen.c: h->listen_fd and h->port; the door closes it. */
turbo_status turbod_listen(turbod_http *h, const turbod_conf *c, turbo_err *err);
/* loop.c: takes the daemon, also on failure. */
turbo_status turbod_loop_start(turbod_http *h, struct MHD_Daemon *daemon, turbod_loop **out,
                               turbo_err *err);
/* The daemon gets the socket; false: no memory, it is still the caller's. Any thread. */
bool turbod_loop_adopt(turbod_loop *l, int fd, const struct sockaddr_storage *addr, socklen_t len,
                       uint64_t tag);
void turbod_loop_poke(turbod_loop *l); /* a connection was resumed. Any thread */
void turbod_loop_stop(turbod_loop *l); /* closes all its connections; NULL allowed */
/* door.c */
void turbod_door_lost(turbod_http *h, int fd, uint64_t tag); /* a daemon refused this socket */
turbo_status turbod_door_open(turbod_http *h, const turbod_conf *c, turbo_err *err);
turbo_status turbod_door_start(turbod_http *h, turbo_err *err);
void turbod_door_poke(turbod_http *h);
void turbod_door_close(turbod_http *h);
turbod_client *turbod_client_of(turbod_http *h, int fd); /* http.mu is held */
void turbod_client_drop(turbod_http *h, turbod_client *c); /* http.mu is held; frees, does not close */

/* writer.c */
turbo_status turbod_writer_start(turbod_http *h, turbo_err *err);
void turbod_writer_join(turbod_http *h); /* after h->stopping was set */
void turbod_writer_push_locked(turbod_exchange *x); /* x->mu is held */

/* serve.c: libmicrohttpd's callbacks */
turbo_status turbod_serve_start(turbod_http *h, turbo_err *err);

#endif
