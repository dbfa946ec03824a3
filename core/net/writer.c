/* core/net/writer.c: the writer thread: sends what a stream has new, one chunk and one system call.
 *
 * libmicrohttpd sends the head of a stream and its end. In between its connection stays suspended and
 * the socket is the writer's: to resume, poll and suspend it again for every token costs several times
 * what sending it does. A connection is handed over between two chunks of the reply's chunked coding
 * (turbod_stream_read suspends with nothing unsent), so the writer frames its own. Must not know: JSON,
 * what the bytes mean.
 *
 * Everything of an exchange here is guarded by exchange.mu; the queue by writer_mu, which is taken last. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "net/gen.h"
#include "net/net.h"
#include "util/err.h"

#define RETRY_MS 20 /* a reader whose socket is full is looked at again */

void turbod_writer_push_locked(turbod_exchange *x)
{
    turbod_http *h = x->http;
    if (x->queued)
        return;
    x->queued = true;
    turbod_exchange_ref(x);
    x->next_write = NULL;
    pthread_mutex_lock(&h->writer_mu);
    if (h->write_tail)
        h->write_tail->next_write = x;
    else
        h->write_head = x;
    h->write_tail = x;
    if (h->writer_sleeps) { /* one wake-up for all that one step brings */
        h->writer_sleeps = false;
        pthread_cond_signal(&h->writer_wake);
    }
    pthread_mutex_unlock(&h->writer_mu);
}

/* Sends a whole chunk, or keeps its rest in x->rest. False: the socket takes nothing now, and nothing
 * was sent. A broken socket counts as sent: the door sees its end. */
static bool send_chunk(turbod_exchange *x)
{
    char head[24];
    int n_head = snprintf(head, sizeof head, "%zx\r\n", x->out.len);
    struct iovec parts[3] = {{head, (size_t)n_head}, {x->out.ptr, x->out.len}, {(char *)"\r\n", 2}};
    struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t n = sendmsg(x->client->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return errno != EAGAIN && errno != EINTR && errno != ENOBUFS && errno != ENOMEM;
    size_t done = (size_t)n;
    for (int i = 0; i < 3; i++) {
        size_t skip = done < parts[i].iov_len ? done : parts[i].iov_len;
        turbod_buf_add(&x->rest, (char *)parts[i].iov_base + skip, parts[i].iov_len - skip);
        done -= skip;
    }
    return true;
}

/* The rest of a chunk. True: nothing is left. */
static bool send_rest(turbod_exchange *x)
{
    if (!x->rest.len)
        return true;
    ssize_t n = send(x->client->fd, x->rest.ptr, x->rest.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
        memmove(x->rest.ptr, x->rest.ptr + n, x->rest.len - (size_t)n);
        x->rest.len -= (size_t)n;
        x->last_out = turbod_ms();
    } else if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS && errno != ENOMEM) {
        turbod_buf_clear(&x->rest);
    }
    return !x->rest.len;
}

/* True: its socket is full in the middle of a chunk; it stays queued, to be tried again. */
static bool write_one(turbod_exchange *x)
{
    bool full = false;
    pthread_mutex_lock(&x->mu);
    if (x->direct && x->suspended && !x->over && !x->gone) {
        if (!send_rest(x)) {
            full = true;
        } else if (turbod_gen_over(x->gen)) {
            turbod_exchange_wake_locked(x);
        } else {
            turbod_buf_clear(&x->out);
            x->out_at = 0;
            turbod_sse_fill(x->gen);
            if (x->out.failed || (x->out.len && !send_chunk(x))) {
                x->direct = false; /* libmicrohttpd sends x->out when the socket takes it */
                turbod_exchange_wake_locked(x);
            } else if (x->out.len) {
                turbod_buf_clear(&x->out);
                x->last_out = turbod_ms();
                full = x->rest.len > 0;
            }
        }
    }
    x->queued = full;
    pthread_mutex_unlock(&x->mu);
    return full;
}

static void until_retry(struct timespec *ts)
{
    clock_gettime(CLOCK_MONOTONIC, ts);
    ts->tv_nsec += RETRY_MS * 1000000;
    ts->tv_sec += ts->tv_nsec / 1000000000;
    ts->tv_nsec %= 1000000000;
}

/* The whole queue at once; NULL when the time to retry has come, or the server stops. */
static turbod_exchange *take_all(turbod_http *h, bool retry)
{
    struct timespec ts;
    bool late = false;
    until_retry(&ts);
    pthread_mutex_lock(&h->writer_mu);
    while (!h->write_head && !late && !atomic_load(&h->stopping)) {
        h->writer_sleeps = true;
        if (retry)
            late = pthread_cond_timedwait(&h->writer_wake, &h->writer_mu, &ts) != 0;
        else
            pthread_cond_wait(&h->writer_wake, &h->writer_mu);
    }
    h->writer_sleeps = false;
    turbod_exchange *list = h->write_head;
    h->write_head = h->write_tail = NULL;
    pthread_mutex_unlock(&h->writer_mu);
    return list;
}

/* Writes each of a list; what stays queued goes to *full. */
static void write_all(turbod_exchange *list, turbod_exchange **full)
{
    for (turbod_exchange *x = list, *next; x; x = next) {
        next = x->next_write;
        if (write_one(x)) {
            x->next_write = *full;
            *full = x;
        } else {
            turbod_exchange_release(x);
        }
    }
}

static void *writer_main(void *arg)
{
    turbod_http *h = arg;
    turbod_exchange *full = NULL;
    pthread_setname_np(pthread_self(), "turbo-writer");
    while (!atomic_load(&h->stopping)) {
        turbod_exchange *list = take_all(h, full != NULL), *again = full;
        full = NULL;
        write_all(again, &full);
        write_all(list, &full);
    }
    for (turbod_exchange *next; full; full = next) {
        next = full->next_write;
        turbod_exchange_release(full);
    }
    for (turbod_exchange *x = take_all(h, false), *next; x; x = next) {
        next = x->next_write;
        turbod_exchange_release(x);
    }
    return NULL;
}

turbo_status turbod_writer_start(turbod_http *h, turbo_err *err)
{
    if (pthread_create(&h->writer, NULL, writer_main, h))
        return turbod_err(err, TURBO_ENOMEM, "cannot start the writer thread");
    h->writer_started = true;
    return TURBO_OK;
}

void turbod_writer_join(turbod_http *h)
{
    if (!h->writer_started)
        return;
    pthread_mutex_lock(&h->writer_mu);
    pthread_cond_broadcast(&h->writer_wake);
    pthread_mutex_unlock(&h->writer_mu);
    pthread_join(h->writer, NULL);
    h->writer_started = false;
}
