/* core/net/auth.c: keys, hosts, origins and limits of the network side.
 * Built on the main thread, read by all, never changed. Keys are kept as digests only. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net/net.h"
#include "util/err.h"
#include "util/sha256.h"

#define MAX_KEY_FILE 262144
#define MIN_KEY 16
#define MAX_KEY 1024

static bool label_ok(const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'A' && s[i] <= 'Z') ||
              (s[i] >= 'a' && s[i] <= 'z') || s[i] == '.' || s[i] == '_' || s[i] == '-'))
            return false;
    return n > 0 && n <= 64;
}

/* "sha256:<64 hex digits>" names a key without holding it. */
static bool hex_digest(const char *s, uint8_t out[32])
{
    static const char digits[] = "0123456789abcdef";
    if (strlen(s) != 64)
        return false;
    for (int i = 0; i < 64; i++) {
        const char *d = strchr(digits, s[i]);
        if (!d)
            return false;
        unsigned v = (unsigned)(d - digits);
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | v : v << 4);
    }
    return true;
}

static turbo_status key_line(turbod_rules *r, char *line, int number, turbo_err *err)
{
    char *save = NULL, *word[4] = {0};
    int n = 0;
    for (char *w = strtok_r(line, " \t\r", &save); w && n < 4; w = strtok_r(NULL, " \t\r", &save))
        word[n++] = w;
    if (!n || word[0][0] == '#')
        return TURBO_OK;
    if (n < 2 || n > 3 || (n == 3 && strcmp(word[2], "admin")))
        return turbod_err(err, TURBO_EINVAL, "api_keys, line %d: expected `label key [admin]`",
                          number);
    if (!label_ok(word[0]))
        return turbod_err(err, TURBO_EINVAL,
                          "api_keys, line %d: a label has 1 to 64 of A-Z a-z 0-9 . _ -", number);
    turbod_key *k = &r->keys[r->n_keys];
    *k = (turbod_key){.admin = n == 3};
    memcpy(k->label, word[0], strlen(word[0]) + 1);
    size_t len = strlen(word[1]);
    if (!strncmp(word[1], "sha256:", 7)) {
        if (!hex_digest(word[1] + 7, k->digest))
            return turbod_err(err, TURBO_EINVAL,
                              "api_keys, line %d: sha256: needs 64 lower-case hex digits", number);
    } else {
        if (len < MIN_KEY || len > MAX_KEY)
            return turbod_err(err, TURBO_EINVAL,
                              "api_keys, line %d: a key has %d to %d characters, this one %zu",
                              number, MIN_KEY, MAX_KEY, len);
        turbod_sha256(word[1], len, k->digest);
    }
    for (int i = 0; i < r->n_keys; i++)
        if (turbod_equal32(r->keys[i].digest, k->digest))
            return turbod_err(err, TURBO_EINVAL, "api_keys, line %d: the key of %s again", number,
                              r->keys[i].label);
    r->n_keys++;
    return TURBO_OK;
}

static turbo_status read_file(const char *path, char **text, turbo_err *err)
{
    struct stat st;
    char *p = NULL;
    turbo_status rc = TURBO_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return turbod_err(err, errno == ENOENT ? TURBO_ENOENT : TURBO_EIO, "api_keys %s: %s", path,
                          strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > MAX_KEY_FILE)
        rc = turbod_err(err, TURBO_EINVAL, "api_keys %s: not a regular file of at most 256 KiB",
                        path);
    else if ((st.st_mode & 077) || (st.st_uid != geteuid() && st.st_uid != 0))
        rc = turbod_err(err, TURBO_EINVAL,
                        "api_keys %s: others can read it (mode %03o); chmod 600 it", path,
                        (unsigned)st.st_mode & 0777u);
    else if (!(p = calloc(1, (size_t)st.st_size + 1)))
        rc = turbod_err(err, TURBO_ENOMEM, "no memory for api_keys");
    for (off_t at = 0; !rc && at < st.st_size;) {
        ssize_t n = read(fd, p + at, (size_t)(st.st_size - at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            rc = turbod_err(err, TURBO_EIO, "api_keys %s: cannot be read", path);
        else
            at += n;
    }
    close(fd);
    if (rc) {
        free(p);
        return rc;
    }
    *text = p;
    return TURBO_OK;
}

static turbo_status read_keys(turbod_rules *r, const char *path, turbo_err *err)
{
    char *text = NULL, *save = NULL;
    turbo_status st = read_file(path, &text, err);
    if (st)
        return st;
    size_t len = strlen(text);
    int number = 0;
    r->keys = calloc(TURBOD_MAX_KEYS + 1, sizeof *r->keys);
    if (!r->keys)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for api_keys");
    for (char *l = strtok_r(text, "\n", &save); !st && l; l = strtok_r(NULL, "\n", &save)) {
        number++;
        if (r->n_keys == TURBOD_MAX_KEYS)
            st = turbod_err(err, TURBO_EINVAL, "api_keys: more than %d keys", TURBOD_MAX_KEYS);
        else
            st = key_line(r, l, number, err);
    }
    if (!st && !r->n_keys)
        st = turbod_err(err, TURBO_EINVAL, "api_keys %s: holds no key", path);
    explicit_bzero(text, len);
    free(text);
    return st;
}

static bool is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (!strcmp(host, "localhost"))
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

turbo_status turbod_rules_new(const turbod_conf *c, turbod_rules **out, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    turbod_rules *r = calloc(1, sizeof *r);
    if (!r)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the network rules");
    atomic_init(&r->refs, 1);
    r->hosts = strdup(c->allowed_hosts ? c->allowed_hosts : "");
    r->origins = strdup(c->allowed_origins ? c->allowed_origins : "");
    r->bound = strdup(c->host);
    r->body_limit = c->body_limit;
    r->header_ms = c->header_timeout_ms;
    r->body_ms = c->body_timeout_ms;
    r->idle_ms = c->idle_timeout_ms;
    r->send_ms = c->send_timeout_ms;
    r->request_ms = c->request_timeout_ms;
    r->queue_ms = c->queue_timeout_ms;
    r->ping_ms = c->ping_ms;
    r->metrics_open = c->metrics_open;
    r->metrics_vllm = *c->metrics_compat != '\0'; /* turbod_conf_load lets nothing else through */
    if (!r->hosts || !r->origins || !r->bound)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for the network rules");
    if (!st && c->api_keys && *c->api_keys)
        st = read_keys(r, c->api_keys, err);
    if (!st && !r->n_keys && !is_loopback(c->host))
        st = turbod_err(err, TURBO_EINVAL,
                        "host %s can be reached from elsewhere: set api_keys, or host to 127.0.0.1",
                        c->host);
    if (st) {
        turbod_rules_release(r);
        return st;
    }
    *out = r;
    return TURBO_OK;
}

void turbod_rules_release(turbod_rules *r)
{
    if (!r || atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    free(r->keys);
    free(r->hosts);
    free(r->origins);
    free(r->bound);
    free(r);
}

const turbod_key *turbod_rules_who(const turbod_rules *r, turbod_text a)
{
    static const char scheme[] = "Bearer ";
    const size_t n = sizeof scheme - 1;
    uint8_t digest[32];
    const turbod_key *found = NULL;
    bool shaped = a.p && a.n > n && a.n <= n + MAX_KEY && !memcmp(a.p, scheme, n);
    turbod_sha256(shaped ? a.p + n : "", shaped ? a.n - n : 0, digest);
    for (int i = 0; i < r->n_keys; i++) /* all of them, so that time tells nothing */
        if (turbod_equal32(r->keys[i].digest, digest))
            found = &r->keys[i];
    return shaped ? found : NULL;
}

/* Is the text one of a comma-separated list? "*" in the list means any. */
static bool in_list(const char *list, turbod_text t)
{
    while (*list) {
        list += strspn(list, ", \t");
        size_t n = strcspn(list, ", \t");
        if (n == 1 && *list == '*')
            return true;
        if (n && n == t.n && !strncasecmp(list, t.p, n))
            return true;
        list += n;
    }
    return false;
}

bool turbod_rules_host(const turbod_rules *r, turbod_text host)
{
    turbod_text name;
    if (!turbod_head_host(host, &name))
        return false;
    if (turbod_text_same(name, "localhost") || turbod_text_is(name, "127.0.0.1") ||
        turbod_text_is(name, "[::1]") || turbod_text_same(name, r->bound))
        return true;
    if (name.p[0] == '[' && name.n > 2 &&
        turbod_text_same((turbod_text){name.p + 1, name.n - 2}, r->bound))
        return true;
    return in_list(r->hosts, name);
}

bool turbod_rules_origin(const turbod_rules *r, turbod_text origin)
{
    return in_list(r->origins, origin);
}
