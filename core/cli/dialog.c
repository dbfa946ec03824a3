/* core/cli/dialog.c: the chat loop: reading messages, commands, history, and keeping the transcript.
 * Works on a terminal and on a pipe. Main thread. Must not know who answers. */
#include <editline/readline.h>
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "util/err.h"
#include "util/utf8.h"

#define MESSAGE_MAX ((size_t)8 << 20)
#define HISTORY_LINES 1000
#define LOOK_MS 100

typedef struct dialog {
    const cli_backend *backend;
    bool terminal;
    turbod_message *msgs; /* content is owned, pictures lie in kept */
    turbod_slots *kept; /* [cap] of each message */
    turbod_slots waiting; /* pictures for the next question */
    size_t n, cap, n_system;
    uint64_t round; /* answers asked for so far */
    char *history; /* file, or NULL */
    int code;
} dialog;

/* ---- transcript ---------------------------------------------------------------------------------- */

static bool push(dialog *d, const char *role, const char *text, size_t len)
{
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 16;
        turbod_message *m = reallocarray(d->msgs, cap, sizeof *m);
        if (!m)
            return false;
        d->msgs = m;
        turbod_slots *k = reallocarray(d->kept, cap, sizeof *k);
        if (!k)
            return false;
        d->kept = k;
        d->cap = cap;
    }
    char *copy = malloc(len + 1);
    if (!copy)
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    d->msgs[d->n] = (turbod_message){.role = role, .content = copy, .content_len = len};
    d->kept[d->n++] = (turbod_slots){0};
    return true;
}

/* The pictures that wait go with the last message, in front of its text. */
static bool attach(dialog *d)
{
    turbod_message *m = &d->msgs[d->n - 1];
    size_t n = d->waiting.n;
    turbod_image **images = calloc(n ? n : 1, sizeof *images);
    size_t *at = calloc(n ? n : 1, sizeof *at);
    if (!images || !at) {
        free(images);
        free(at);
        return false;
    }
    for (size_t i = 0; i < n; i++)
        images[i] = d->waiting.v[i].image;
    m->images = images;
    m->image_at = at;
    m->n_images = n;
    d->kept[d->n - 1] = d->waiting;
    d->waiting = (turbod_slots){0};
    return true;
}

static void pop(dialog *d)
{
    union {
        const char *given;
        char *owned;
    } text = {.given = d->msgs[--d->n].content};
    union {
        turbod_image *const *given;
        turbod_image **owned;
    } images = {.given = d->msgs[d->n].images};
    union {
        const size_t *given;
        size_t *owned;
    } at = {.given = d->msgs[d->n].image_at};
    free(text.owned);
    free(images.owned);
    free(at.owned);
    turbod_slots_free(&d->kept[d->n]);
}

static bool last_is(const dialog *d, const char *role)
{
    return d->n > d->n_system && !strcmp(d->msgs[d->n - 1].role, role);
}

/* ---- input --------------------------------------------------------------------------------------- */

#define KILL_LINE 0x15 /* Ctrl-U in the editor's default bindings */
#define CTRL_D 0x04

/* Bytes from the terminal as characters for the editor, which cannot be woken by a signal: Ctrl-C
 * becomes "empty the line" and "end of line" instead. */
static int read_char(FILE *in)
{
    static bool end_line; /* behind KILL_LINE; the editor has no place for state */
    unsigned char b[4];
    if (end_line) {
        end_line = false;
        return '\r';
    }
    for (size_t n = 0; n < 4;) {
        struct pollfd p = {.fd = fileno(in), .events = POLLIN};
        int ready =
            poll(&p, 1, LOOK_MS); /* a signal just before it would be missed without a limit */
        if (cli_interrupt_waits()) {
            end_line = true;
            return KILL_LINE;
        }
        if (!ready || (ready < 0 && errno == EINTR))
            continue;
        ssize_t got = read(p.fd, b + n, 1);
        if (got <= 0)
            return EOF;
        /* A Ctrl-D typed before the editor had the terminal arrives as a NUL, which the editor would put
         * into the line. */
        if (!b[n])
            b[n] = CTRL_D;
        size_t len = turbod_utf8_len(b, ++n);
        if (len == 1)
            return b[0];
        if (len)
            return (b[0] & (0xFF >> (len + 1))) << (6 * (len - 1)) |
                   (b[1] & 0x3F) << (6 * (len - 2)) |
                   (len > 2 ? (b[2] & 0x3F) << (6 * (len - 3)) : 0) | (len > 3 ? b[3] & 0x3F : 0);
        if (!turbod_utf8_prefix(b, n))
            break;
    }
    return 0xFFFD;
}

/* One line without its end; NULL at the end of input. Owned by the caller. */
static char *read_line(dialog *d, const char *prompt)
{
    if (d->terminal) {
        char *line = readline(prompt);
        if (line && *line)
            add_history(line);
        return line;
    }
    char *line = NULL;
    size_t cap = 0;
    ssize_t n = getline(&line, &cap, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
        line[--n] = '\0';
    return line;
}

enum { GOT_MESSAGE, GOT_COMMAND, GOT_END };

/* Lines up to an empty one. A first line that begins with / is a command by itself. */
static int read_message(dialog *d, turbod_buf *b)
{
    turbod_buf_clear(b);
    turbod_buf_str(b, "");
    for (bool first = true;;) {
        char *line = read_line(d, first ? "you> " : "...> ");
        if (cli_interrupted()) { /* Ctrl-C throws the message away */
            free(line);
            turbod_buf_clear(b);
            putchar('\n');
            first = true;
            clearerr(stdin);
            continue;
        }
        if (!line)
            return first ? GOT_END : GOT_MESSAGE;
        if (first && !*line) {
            free(line);
            continue;
        }
        if (first && *line == '/') {
            turbod_buf_str(b, line);
            free(line);
            return GOT_COMMAND;
        }
        if (!*line) {
            free(line);
            return GOT_MESSAGE;
        }
        if (!first)
            turbod_buf_str(b, "\n");
        turbod_buf_str(b, line);
        free(line);
        first = false;
    }
}

/* $XDG_STATE_HOME/turbo/chat-history, by default below ~/.local/state. */
static char *history_file(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char path[PATH_MAX];
    int n = state && *state == '/' ? snprintf(path, sizeof path, "%s/turbo/chat-history", state)
            : home && *home == '/'
                ? snprintf(path, sizeof path, "%s/.local/state/turbo/chat-history", home)
                : -1;
    if (n < 0 || (size_t)n >= sizeof path)
        return NULL;
    for (char *p = path + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        int failed = mkdir(path, 0700) && errno != EEXIST;
        *p = '/';
        if (failed)
            return NULL;
    }
    return strdup(path);
}

/* ---- one turn ------------------------------------------------------------------------------------ */

static void turn(dialog *d)
{
    turbo_err err = {{0}};
    turbod_buf answer;
    double rate = 0;
    int32_t n = 0;
    turbod_buf_init(&answer, (size_t)64 << 20);
    turbod_buf_str(&answer, "");
    turbo_status st =
        d->backend->ask(d->backend->ctx, d->msgs, d->n, d->round++, &answer, &rate, &n, &err);
    putchar('\n');
    fflush(stdout);
    if (st && st != TURBO_ECANCELLED) {
        fprintf(stderr, "error: %s\n", err.text);
        d->code = turbod_exit_code(st);
    } else {
        d->code = 0;
        fprintf(stderr, "[%s%d tokens, %.1f tokens/s]\n", st ? "stopped, " : "", n, rate);
    }
    if (d->terminal)
        putchar('\n');
    /* What was shown is part of the dialogue; a turn without an answer is taken back. */
    if (answer.len) {
        if (!push(d, "assistant", answer.ptr, answer.len))
            pop(d);
    } else if (last_is(d, "user")) {
        pop(d);
    }
    turbod_buf_free(&answer);
}

/* ---- commands ------------------------------------------------------------------------------------ */

static void save(const dialog *d, const char *path)
{
    FILE *f = *path ? fopen(path, "we") : NULL;
    if (!f) {
        fprintf(stderr, "/save FILE: %s\n", *path ? strerror(errno) : "a file name is needed");
        return;
    }
    fputs("{\"messages\":[", f);
    for (size_t i = 0; i < d->n; i++) {
        fprintf(f, "%s\n{\"role\":\"%s\",\"content\":", i ? "," : "", d->msgs[i].role);
        cli_put_json(f, d->msgs[i].content, d->msgs[i].content_len);
        putc('}', f);
    }
    fputs("\n]}\n", f);
    if (ferror(f) | fclose(f))
        fprintf(stderr, "/save: writing %s failed\n", path);
    else
        fprintf(stderr, "saved %zu messages\n", d->n);
}

static void add_image(dialog *d, const char *path)
{
    turbo_err err = {{0}};
    turbod_image *i = NULL;
    if (!*path)
        fputs("/image FILE: a file name is needed\n", stderr);
    else if (!d->backend->image)
        fputs("/image works in turbo chat, with the model in this process\n", stderr);
    else if (d->backend->image(d->backend->ctx, path, &i, &err))
        fprintf(stderr, "/image: %s\n", err.text);
    else if (!turbod_slots_add(&d->waiting, 0, i))
        fputs("/image: no memory\n", stderr);
    else
        fprintf(stderr, "the next message has %zu picture%s\n", d->waiting.n,
                d->waiting.n == 1 ? "" : "s");
    turbod_image_release(i);
}

static void clear(dialog *d)
{
    while (d->n > d->n_system)
        pop(d);
    turbod_slots_free(&d->waiting);
    fputs("a new dialogue\n", stderr);
}

static void undo(dialog *d)
{
    if (d->n == d->n_system) {
        fputs("nothing to take back\n", stderr);
        return;
    }
    if (last_is(d, "assistant"))
        pop(d);
    if (last_is(d, "user"))
        pop(d);
    fputs("the last turn is taken back\n", stderr);
}

static void regen(dialog *d)
{
    if (!last_is(d, "assistant")) {
        fputs("there is no answer to make again\n", stderr);
        return;
    }
    pop(d);
    turn(d);
}

/* False: leave. */
static bool command(dialog *d, const char *line)
{
    size_t len = strcspn(line, " ");
    const char *arg = line + len + strspn(line + len, " ");
    static const char *const names[] = {"/clear", "/help", "/quit", "/regen",
                                        "/save",  "/undo", "/image"};
    size_t k = 0;
    while (k < 7 && (strlen(names[k]) != len || memcmp(names[k], line, len)))
        k++;
    switch (k) {
    case 0: clear(d); break;
    case 1:
        fputs("A message ends with an empty line.\n"
              "  /regen      makes the last answer again\n"
              "  /undo       takes the last question and answer back\n"
              "  /clear      starts a new dialogue (so does the message: end)\n"
              "  /image FILE shows the model a JPEG or PNG picture with the next message\n"
              "  /save FILE  writes the dialogue as JSON\n"
              "  /quit       leaves (so do the message: exit, and Ctrl-D)\n"
              "Ctrl-C ends the answer that is being made.\n",
              stderr);
        break;
    case 2: return false;
    case 3: regen(d); break;
    case 4: save(d, arg); break;
    case 5: undo(d); break;
    case 6: add_image(d, arg); break;
    default: fprintf(stderr, "%.*s is no command; /help lists them\n", (int)len, line);
    }
    return true;
}

static void loop(dialog *d)
{
    turbod_buf b;
    turbod_buf_init(&b, MESSAGE_MAX);
    for (bool on = true; on;) {
        switch (read_message(d, &b)) {
        case GOT_END: on = false; break;
        case GOT_COMMAND: on = command(d, b.ptr); break;
        default:
            if (b.failed)
                fprintf(stderr, "a message has at most %zu MiB\n", MESSAGE_MAX >> 20);
            else if (!turbod_utf8_valid(b.ptr, b.len))
                fputs("the message is not UTF-8\n", stderr);
            else if (!strcmp(b.ptr, "exit"))
                on = false;
            else if (!strcmp(b.ptr, "end"))
                clear(d);
            else if (push(d, "user", b.ptr, b.len)) {
                if (attach(d))
                    turn(d);
                else
                    pop(d);
            }
        }
    }
    turbod_buf_free(&b);
}

int cli_dialog(const cli_backend *b, const char *system)
{
    dialog d = {.backend = b, .terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    if (system && push(&d, "system", system, strlen(system)))
        d.n_system = 1;
    cli_catch_interrupts();
    /* The editor asks the locale how wide characters are. Only this thread, only characters: numbers
     * keep their point. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0), old = (locale_t)0;
    if (d.terminal && utf8)
        old = uselocale(utf8);
    if (d.terminal) {
        rl_getc_function = read_char;
        rl_catch_signals = 0; /* ours stay in place */
        fprintf(stderr, "%s. End a message with an empty line; /help lists commands.\n", b->where);
        using_history();
        stifle_history(HISTORY_LINES);
        d.history = history_file();
        if (d.history)
            read_history(d.history);
    }
    loop(&d);
    if (d.history)
        write_history(d.history);
    free(d.history);
    while (d.n)
        pop(&d);
    free(d.msgs);
    free(d.kept);
    turbod_slots_free(&d.waiting);
    if (old)
        uselocale(old);
    if (utf8)
        freelocale(utf8);
    return d.code;
}
