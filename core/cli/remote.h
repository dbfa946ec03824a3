/* core/cli/remote.h: a server at the other end of libcurl: its address, its key, a request to it. Main
 * thread. Must not know what is asked. */
#ifndef TURBOD_CLI_REMOTE_H
#define TURBOD_CLI_REMOTE_H

#include <curl/curl.h>

#include "cli/cli.h"

typedef struct cli_remote {
    CURL *curl;
    struct curl_slist *headers;
    char base[1024]; /* scheme, host and prefix; no "/v1", no "/" at its end */
    char why[CURL_ERROR_SIZE]; /* of the last request, "" when libcurl had nothing to say */
    turbod_buf body; /* of the last reply, as far as it is not given to somebody else */
} cli_remote;

/* The URL is http://HOST:PORT or what other clients call base_url, with "/v1". The key is the flag
 * api-key, or $TURBO_API_KEY. cli_remote_close in any case. */
turbo_status cli_remote_open(cli_remote *r, const cli_args *a, const char *url, size_t most_body,
                             turbo_err *err);
void cli_remote_close(cli_remote *r);
/* Everything for a request to base + path: GET when body is NULL, else POST. What is special to it may be
 * set on r->curl before cli_remote_perform. The reply goes into r->body. */
void cli_remote_prepare(cli_remote *r, const char *path, const char *body);
/* *status is 0 when no reply came. A reply is TURBO_OK here, whatever it says. */
turbo_status cli_remote_perform(cli_remote *r, long *status, turbo_err *err);
/* The server's refusal in r->body, with its words. */
turbo_status cli_remote_refused(const cli_remote *r, long status, turbo_err *err);

#endif
