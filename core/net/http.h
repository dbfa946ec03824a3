/* core/net/http.h: the HTTP server, as the rest of the program sees it.
 *
 * Started once by the main thread; owns a door thread (accept, head scan, deadlines), the thread of
 * libmicrohttpd and two workers. All functions below belong to the main thread. The services must
 * outlive the server, and the engine must still run when turbod_http_stop is called. */
#ifndef TURBOD_HTTP_H
#define TURBOD_HTTP_H

#include <stdbool.h>

#include "engine/services.h"

typedef struct turbod_http turbod_http;

/* Binds host and port of the first one's conf and serves at once; while a model loads, /health tells the
 * progress and the routes of that model answer 503. EINVAL: an address beyond loopback without keys, or
 * a bad key file. EIO: the address cannot be bound, in use for example. */
turbo_status turbod_http_start(turbod_services *models, turbod_http **out, turbo_err *err);
/* The bound port (useful with port 0). */
int turbod_http_port(const turbod_http *h);
/* Takes no new connections; answers new requests on open ones with 503. */
void turbod_http_quiesce(turbod_http *h);
int turbod_http_answering(turbod_http *h); /* how many requests are being answered */
/* True when no request is being answered, and none is on its way that came before the door closed. */
bool turbod_http_drained(turbod_http *h);
/* Ends what is still being answered with an error (an error event in a stream), then stops. */
void turbod_http_stop(turbod_http *h);
/* Takes keys, hosts, origins and limits of a new configuration; running requests keep theirs. On an
 * error (a bad key file) nothing changes. The conf is not kept. */
turbo_status turbod_http_reload(turbod_http *h, const turbod_conf *conf, turbo_err *err);

#endif
