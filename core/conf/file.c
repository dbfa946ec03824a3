/* core/conf/file.c: the conf file: opened with suspicion, scanned, given to libconfig, and walked by
 * the option table. Main thread.
 *
 * libconfig reads any file that an @include names and cuts integers to 31 bits without a word, so
 * this file never hands it a path, refuses @include, and marks long integers for it. */
#include <errno.h>
#include <fcntl.h>
#include <libconfig.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf/table.h"
#include "util/buf.h"
#include "util/err.h"

#define CONF_MAX (1u << 20)

static turbo_status check_file(int fd, const char *name, struct stat *st, turbo_err *err)
{
    if (fstat(fd, st))
        return turbod_err(err, TURBO_EIO, "%s: %s", name, strerror(errno));
    if (!S_ISREG(st->st_mode))
        return turbod_err(err, TURBO_EINVAL, "%s is not a regular file", name);
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return turbod_err(err, TURBO_EINVAL,
                          "%s belongs to user %u; the conf file must belong to root or to user %u",
                          name, st->st_uid, geteuid());
    if (st->st_mode & S_IWOTH)
        return turbod_err(err, TURBO_EINVAL, "%s is writable by everyone; chmod o-w it", name);
    if (st->st_size > (off_t)CONF_MAX)
        return turbod_err(err, TURBO_EINVAL, "%s has %lld bytes; a conf file has at most %u", name,
                          (long long)st->st_size, CONF_MAX);
    return TURBO_OK;
}

static turbo_status read_file(const char *name, char **text, size_t *n, turbo_err *err)
{
    struct stat st;
    int fd = open(name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return turbod_err(err, errno == ENOENT ? TURBO_ENOENT : TURBO_EIO, "conf file %s: %s", name,
                          errno == ELOOP ? "is a symbolic link; name the file itself"
                                         : strerror(errno));
    turbo_status status = check_file(fd, name, &st, err);
    char *buf = status ? NULL : malloc(CONF_MAX + 1);
    size_t len = 0;
    if (!status && !buf)
        status = turbod_err(err, TURBO_ENOMEM, "no memory for %s", name);
    while (!status && len <= CONF_MAX) { /* one byte more than allowed: it may grow meanwhile */
        ssize_t got = read(fd, buf + len, CONF_MAX + 1 - len);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            status = turbod_err(err, TURBO_EIO, "%s: %s", name, strerror(errno));
        if (got <= 0)
            break;
        len += (size_t)got;
    }
    if (!status && len > CONF_MAX)
        status = turbod_err(err, TURBO_EINVAL, "%s is longer than %u bytes", name, CONF_MAX);
    close(fd);
    if (status) {
        free(buf);
        return status;
    }
    *text = buf;
    *n = len;
    return TURBO_OK;
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '*' || c == '-' || c == '.' || c == '+';
}

/* A word that libconfig reads as an integer of 32 bits: say so with L when it needs more. */
static turbo_status scan_word(turbod_buf *b, const char *w, size_t n, const char *name, int line,
                              turbo_err *err)
{
    size_t sign = *w == '-' || *w == '+', digits = 0;
    bool hex = n > sign + 2 && w[sign] == '0' && (w[sign + 1] == 'x' || w[sign + 1] == 'X');
    const char *set = hex ? "0123456789abcdefABCDEF" : "0123456789";
    size_t at = sign + (hex ? 2 : 0);
    while (at + digits < n && strchr(set, w[at + digits]))
        digits++;
    size_t tail = n - at - digits;
    bool plain = digits && !tail;
    bool marked = digits && ((tail == 1 && w[n - 1] == 'L') ||
                             (tail == 2 && w[n - 1] == 'L' && w[n - 2] == 'L'));
    turbod_buf_add(b, w, n);
    if (!plain && !marked)
        return TURBO_OK;
    if (digits > (hex ? 15u : 18u))
        return turbod_err(err, TURBO_EINVAL,
                          "%s:%d: the number %.24s... has more digits than any "
                          "option takes",
                          name, line, w);
    if (plain && digits > (hex ? 7u : 9u))
        turbod_buf_str(b, "L");
    return TURBO_OK;
}

/* End of the comment or string that starts at i; n when it does not end. */
static size_t skip_quiet(const char *t, size_t i, size_t n)
{
    if (t[i] == '"') {
        for (i++; i < n && t[i] != '"'; i++)
            if (t[i] == '\\')
                i++;
        return i < n ? i + 1 : n;
    }
    if (t[i] == '#' || (t[i] == '/' && i + 1 < n && t[i + 1] == '/')) {
        while (i < n && t[i] != '\n')
            i++;
        return i;
    }
    if (t[i] == '/' && i + 1 < n && t[i + 1] == '*') {
        for (i += 2; i + 1 < n; i++)
            if (t[i] == '*' && t[i + 1] == '/')
                return i + 2;
        return n;
    }
    return i;
}

turbo_status turbod_conf_prescan(const char *text, size_t n, const char *name, char **out,
                                 turbo_err *err)
{
    turbod_buf b;
    int line = 1;
    turbo_status st = TURBO_OK;
    turbod_buf_init(&b, 2 * (size_t)CONF_MAX + 2);
    turbod_buf_str(&b, ""); /* an empty file is a string too */
    for (size_t i = 0; !st && i < n;) {
        size_t end = skip_quiet(text, i, n);
        const char *nul = memchr(text + i, '\0', end > i ? end - i : 1);
        if (nul)
            st = turbod_err(err, TURBO_EINVAL, "%s:%d: holds a NUL byte; is this a conf file?",
                            name, line);
        else if (end > i) {
            turbod_buf_add(&b, text + i, end - i);
            for (; i < end; i++)
                line += text[i] == '\n';
        } else if (text[i] == '@') {
            st = turbod_err(err, TURBO_EINVAL,
                            "%s:%d: @include is not allowed; write the settings "
                            "into this file",
                            name, line);
        } else if (is_word(text[i])) {
            while (end < n && is_word(text[end]))
                end++;
            st = scan_word(&b, text + i, end - i, name, line, err);
            i = end;
        } else {
            line += text[i] == '\n';
            turbod_buf_add(&b, text + i++, 1);
        }
    }
    if (!st && b.failed)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %s", name);
    if (st) {
        turbod_buf_free(&b);
        return st;
    }
    *out = b.ptr;
    return TURBO_OK;
}

static const char *kind_of(const config_setting_t *s)
{
    switch (config_setting_type(s)) {
    case CONFIG_TYPE_GROUP: return "a group";
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64: return "a whole number";
    case CONFIG_TYPE_FLOAT: return "a number with a point";
    case CONFIG_TYPE_STRING: return "a string";
    case CONFIG_TYPE_BOOL: return "a truth value";
    case CONFIG_TYPE_ARRAY: return "an array";
    default: return "a list";
    }
}

static const char *wanted(const turbod_opt *o)
{
    switch (o->type) {
    case TURBOD_OPT_STR:
    case TURBOD_OPT_PATH: return "a string in quotes";
    case TURBOD_OPT_INT: return "a whole number";
    case TURBOD_OPT_NUM: return "a number";
    case TURBOD_OPT_BOOL: return "true or false";
    default: return "a size such as \"8MiB\" or a number of bytes";
    }
}

/* ("a", "b") for an option whose text is a comma-separated list. */
static bool join_list(const config_setting_t *s, turbod_buf *b)
{
    int n = config_setting_length(s);
    for (int i = 0; i < n; i++) {
        const char *text = config_setting_get_string_elem(s, i);
        if (!text)
            return false;
        turbod_buf_printf(b, "%s%s", i ? "," : "", text);
    }
    return true;
}

/* A setting as the text that flags and environment would give. False: of the wrong type. */
static bool setting_text(const turbod_conf *c, const turbod_opt *o, const config_setting_t *s,
                         turbod_buf *b)
{
    int type = config_setting_type(s);
    bool integer = type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64;
    bool numeric_text = o->type == TURBOD_OPT_STR && o->dflt[0] >= '0' && o->dflt[0] <= '9';
    turbod_buf_str(b, "");
    if (type == CONFIG_TYPE_STRING) {
        const char *text = config_setting_get_string(s), *slash = strrchr(c->file, '/');
        if (o->type != TURBOD_OPT_STR && o->type != TURBOD_OPT_PATH && o->type != TURBOD_OPT_SIZE)
            return false;
        if (o->type == TURBOD_OPT_PATH && *text && *text != '/' && slash)
            turbod_buf_add(b, c->file, (size_t)(slash - c->file) + 1);
        turbod_buf_str(b, text);
        return true;
    }
    if (integer && (o->type == TURBOD_OPT_INT || o->type == TURBOD_OPT_SIZE ||
                    o->type == TURBOD_OPT_NUM || numeric_text)) {
        turbod_buf_printf(b, "%lld", config_setting_get_int64(s));
        return true;
    }
    if (type == CONFIG_TYPE_FLOAT && (o->type == TURBOD_OPT_NUM || numeric_text)) {
        turbod_buf_printf(b, "%.15g", config_setting_get_float(s));
        return true;
    }
    if (type == CONFIG_TYPE_BOOL && o->type == TURBOD_OPT_BOOL) {
        turbod_buf_str(b, config_setting_get_bool(s) ? "true" : "false");
        return true;
    }
    if ((type == CONFIG_TYPE_ARRAY || type == CONFIG_TYPE_LIST) && o->type == TURBOD_OPT_STR &&
        !strcmp(o->meta, "LIST"))
        return join_list(s, b);
    return false;
}

static bool is_section(const char *name)
{
    for (size_t i = 0; i < turbod_n_opts; i++)
        if (*turbod_opts[i].section && !strcmp(turbod_opts[i].section, name))
            return true;
    return false;
}

static turbo_status unknown(const turbod_conf *c, const char *section, const config_setting_t *s,
                            turbo_err *err)
{
    const char *key = config_setting_name(s);
    const turbod_opt *o = turbod_opt_find(NULL, key, strlen(key));
    int line = (int)config_setting_source_line(s);
    if (o)
        return turbod_err(err, TURBO_EINVAL, "%s:%d: %s belongs %s%s%s", c->file, line, key,
                          *o->section ? "into the group " : "to the top level",
                          *o->section ? o->section : "",
                          *o->section ? " = { }" : ", not into a group");
    const char *near = turbod_opt_nearest(section, key);
    if (!near)
        near = turbod_opt_nearest(NULL, key);
    return turbod_err(err, TURBO_EINVAL, "%s:%d: unknown setting %s%s%.40s%s%s%s", c->file, line,
                      section, *section ? "." : "", key, near ? "; did you mean " : "",
                      near ? near : "", near ? "?" : "; turbod --help lists all");
}

static turbo_status set_one(turbod_conf *c, const turbod_opt *o, const config_setting_t *s,
                            turbo_err *err)
{
    turbo_status st;
    turbod_buf b;
    char where[256];
    turbod_buf_init(&b, 2 * (size_t)CONF_MAX);
    snprintf(where, sizeof where, "%s:%d", c->file, (int)config_setting_source_line(s));
    if (!setting_text(c, o, s, &b))
        st = turbod_err(err, TURBO_EINVAL, "%s: %s is %s; %s is needed", where, o->key, kind_of(s),
                        wanted(o));
    else if (b.failed)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %s", where);
    else
        st = turbod_opt_set(c, o, b.ptr, TURBOD_FROM_FILE, where, err);
    turbod_buf_free(&b);
    return st;
}

/* A key of an entry of models = ( ... ) that a model cannot have. */
static turbo_status not_of_model(const turbod_conf *c, const config_setting_t *s, turbo_err *err)
{
    const char *key = config_setting_name(s);
    const turbod_opt *o = turbod_opt_find(NULL, key, strlen(key));
    int line = (int)config_setting_source_line(s);
    if (o)
        return turbod_err(err, TURBO_EINVAL,
                          "%s:%d: %s is the same for all models; write it %s%s%s, not into models",
                          c->file, line, key, *o->section ? "into the group " : "at the top level",
                          o->section, *o->section ? " = { }" : "");
    if (is_section(key))
        return turbod_err(err, TURBO_EINVAL,
                          "%s:%d: an entry of models has no groups; write the settings of %s "
                          "straight into it",
                          c->file, line, key);
    const char *near = turbod_opt_nearest_of_model(key);
    return turbod_err(err, TURBO_EINVAL, "%s:%d: unknown setting models.%.40s%s%s%s", c->file, line,
                      key, near ? "; did you mean " : "", near ? near : "",
                      near ? "?" : "; turbod --help lists all");
}

/* models = ( { model = "..."; session_len = 4096; }, ... ); */
static turbo_status walk_models(turbod_conf *c, const config_setting_t *list, turbo_err *err)
{
    int n = config_setting_length(list), line = (int)config_setting_source_line(list);
    if (!config_setting_is_list(list) || n < 1 || n > TURBOD_MAX_MODELS)
        return turbod_err(
            err, TURBO_EINVAL,
            "%s:%d: models is %s%s; a list of 1 to %d entries is needed: models = ( { "
            "model = \"...\"; }, { model = \"...\"; } );",
            c->file, line, kind_of(list),
            config_setting_is_list(list) ? (n ? " of too many" : " of none") : "",
            TURBOD_MAX_MODELS);
    for (int i = 0; i < n; i++) {
        const config_setting_t *entry = config_setting_get_elem(list, (unsigned)i);
        line = (int)config_setting_source_line(entry);
        if (!config_setting_is_group(entry))
            return turbod_err(err, TURBO_EINVAL,
                              "%s:%d: models[%d] is %s; an entry { model = \"...\"; } is needed",
                              c->file, line, i, kind_of(entry));
        turbod_conf *m = turbod_conf_add_model(c);
        if (!m)
            return turbod_err(err, TURBO_ENOMEM, "no memory for the configuration");
        for (int k = 0; k < config_setting_length(entry); k++) {
            const config_setting_t *s = config_setting_get_elem(entry, (unsigned)k);
            const char *key = config_setting_name(s);
            const turbod_opt *o = turbod_opt_find(NULL, key, strlen(key));
            turbo_status st =
                o && turbod_opt_of_model(o) ? set_one(m, o, s, err) : not_of_model(c, s, err);
            if (st)
                return st;
        }
        if (!m->model || !*m->model)
            return turbod_err(err, TURBO_EINVAL,
                              "%s:%d: models[%d] names no model; set model = \"FOLDER\"; in it",
                              c->file, line, i);
    }
    return TURBO_OK;
}

static turbo_status walk(turbod_conf *c, const char *section, const config_setting_t *group,
                         turbo_err *err)
{
    turbo_status st = TURBO_OK;
    int n = config_setting_length(group);
    for (int i = 0; !st && i < n; i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        const char *key = config_setting_name(s);
        int line = (int)config_setting_source_line(s);
        if (!*section && is_section(key)) {
            st = config_setting_is_group(s)
                     ? walk(c, key, s, err)
                     : turbod_err(err, TURBO_EINVAL,
                                  "%s:%d: %s is %s; a group %s = { ... } is needed", c->file, line,
                                  key, kind_of(s), key);
            continue;
        }
        const turbod_opt *o = turbod_opt_find(section, key, strlen(key));
        if (o)
            st = set_one(c, o, s, err);
        else if (!*section && !strcmp(key, "models"))
            st = walk_models(c, s, err);
        else
            st = unknown(c, section, s, err);
    }
    return st;
}

turbo_status turbod_conf_file(turbod_conf *c, turbo_err *err)
{
    char *raw = NULL, *text = NULL;
    size_t n = 0;
    config_t cfg;
    turbo_status st = read_file(c->file, &raw, &n, err);
    if (st)
        return st;
    st = turbod_conf_prescan(raw, n, c->file, &text, err);
    free(raw);
    if (st)
        return st;
    config_init(&cfg);
    if (config_read_string(&cfg, text) != CONFIG_TRUE)
        st = turbod_err(err, TURBO_EINVAL, "%s:%d: %s; a setting reads  name = value;", c->file,
                        config_error_line(&cfg), config_error_text(&cfg));
    else
        st = walk(c, "", config_root_setting(&cfg), err);
    config_destroy(&cfg);
    free(text);
    return st;
}
