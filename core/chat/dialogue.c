/* core/chat/dialogue.c: see dialogue.h. */
#include "chat/dialogue.h"

#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/utf8.h"

#define MOST_TURNS 2048

static turbo_status no_memory(turbo_err *err)
{
    return turbod_err(err, TURBO_ENOMEM, "no memory for the conversation");
}

static void free_turn(turbod_turn *t)
{
    free(t->role);
    free(t->name);
    free(t->content);
    turbod_slots_free(&t->images);
}

/* Pictures of the first n turns. */
static size_t count_images(const turbod_dialogue *d, size_t n)
{
    size_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += d->turns[i].images.n;
    return sum;
}

size_t turbod_dialogue_images(const turbod_dialogue *d)
{
    return count_images(d, d->n);
}

void turbod_dialogue_cut(turbod_dialogue *d, size_t n)
{
    while (d->n > n)
        free_turn(&d->turns[--d->n]);
    d->n_ids = 0;
    for (size_t i = d->n; i-- > 0 && !d->n_ids;)
        d->n_ids = d->turns[i].ids_end;
}

void turbod_dialogue_free(turbod_dialogue *d)
{
    turbod_dialogue_cut(d, 0);
    free(d->turns);
    free(d->ids);
    free(d->image_at);
    *d = (turbod_dialogue){0};
}

turbo_status turbod_dialogue_add(turbod_dialogue *d, const turbod_message *m, turbo_err *err)
{
    size_t bytes;
    if (d->n >= MOST_TURNS)
        return turbod_err(err, TURBO_ELIMIT, "a conversation has at most %d messages", MOST_TURNS);
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 8;
        if (!turbod_mul(cap, sizeof *d->turns, &bytes))
            return no_memory(err);
        turbod_turn *p = realloc(d->turns, bytes);
        if (!p)
            return no_memory(err);
        d->turns = p;
        d->cap = cap;
    }
    turbod_turn t = {.content_len = m->content_len};
    t.role = strdup(m->role);
    t.name = m->name ? strdup(m->name) : NULL;
    t.content = turbod_add(m->content_len, 1, &bytes) ? malloc(bytes) : NULL;
    bool images = true;
    for (size_t i = 0; i < m->n_images && images; i++)
        images = m->image_at[i] <= INT32_MAX &&
                 turbod_slots_add(&t.images, (int32_t)m->image_at[i], m->images[i]);
    if (!t.role || !t.content || (m->name && !t.name) || !images) {
        free_turn(&t);
        return no_memory(err);
    }
    memcpy(t.content, m->content, m->content_len);
    t.content[m->content_len] = '\0';
    d->turns[d->n++] = t;
    return TURBO_OK;
}

static bool same_turn(const turbod_turn *t, const turbod_message *m)
{
    if (t->images.n != m->n_images)
        return false;
    for (size_t i = 0; i < m->n_images; i++)
        if ((size_t)t->images.v[i].at != m->image_at[i] ||
            memcmp(t->images.v[i].image->digest, m->images[i]->digest, sizeof m->images[i]->digest))
            return false;
    return !strcmp(t->role, m->role) && !t->name == !m->name &&
           (!m->name || !strcmp(t->name, m->name)) && t->content_len == m->content_len &&
           !memcmp(t->content, m->content, m->content_len);
}

turbo_status turbod_dialogue_set(turbod_dialogue *d, const turbod_message *msgs, size_t n,
                                 turbo_err *err)
{
    size_t same = 0;
    while (same < n && same < d->n && same_turn(&d->turns[same], &msgs[same]))
        same++;
    turbod_dialogue_cut(d, same);
    turbo_status st = TURBO_OK;
    for (size_t i = same; i < n && !st; i++)
        st = turbod_dialogue_add(d, &msgs[i], err);
    return st;
}

/* ---- the prompt ----------------------------------------------------------------------------------------- */

static turbo_status render(const turbod_dialogue *d, size_t n, const turbod_chat_kit *kit,
                           bool open_answer, turbod_render *out, turbo_err *err)
{
    turbod_render_opts opts = {.add_generation_prompt = open_answer,
                               .continue_final_message = !open_answer};
    size_t n_images = count_images(d, n), k = 0;
    turbod_message *m = calloc(n ? n : 1, sizeof *m);
    turbod_image **images = calloc(n_images ? n_images : 1, sizeof *images);
    size_t *at = calloc(n_images ? n_images : 1, sizeof *at);
    turbo_status st = TURBO_OK;
    *out = (turbod_render){0};
    if (!m || !images || !at)
        st = no_memory(err);
    for (size_t i = 0; i < n && !st; i++) {
        const turbod_turn *t = &d->turns[i];
        m[i] = (turbod_message){.role = t->role,
                                .name = t->name,
                                .content = t->content,
                                .content_len = t->content_len,
                                .images = images + k,
                                .image_at = at + k,
                                .n_images = t->images.n};
        for (size_t j = 0; j < t->images.n; j++, k++) {
            images[k] = t->images.v[j].image;
            at[k] = (size_t)t->images.v[j].at;
        }
    }
    if (!st)
        st = turbod_template_render(kit->chat, m, n, &opts, out, err);
    free(m);
    free(images);
    free(at);
    return st;
}

/* Is `head` what `whole` begins with, segment by segment? Its last text may go on in whole. */
static bool begins_with(const turbod_render *whole, const turbod_render *head)
{
    if (head->n > whole->n || head->text.len > whole->text.len ||
        memcmp(head->text.ptr, whole->text.ptr, head->text.len))
        return false;
    for (size_t i = 0; i < head->n; i++) {
        const turbod_segment *a = &head->segments[i], *b = &whole->segments[i];
        bool last = i + 1 == head->n && !a->special && !a->image;
        if (a->special != b->special || a->image != b->image || a->at != b->at ||
            (last ? b->len < a->len : b->len != a->len))
            return false;
    }
    return true;
}

/* Encodes what whole has behind head. */
static turbo_status encode_rest(turbod_render *whole, const turbod_render *head,
                                const turbod_chat_kit *kit, size_t *image_at, int32_t **ids,
                                size_t *n, turbo_err *err)
{
    size_t from = head->n;
    if (from && whole->segments[from - 1].len > head->segments[from - 1].len) {
        turbod_segment *g = &whole->segments[--from];
        size_t shown = head->segments[from].len;
        g->at += shown;
        g->len -= shown;
    }
    turbod_render rest = {.text = whole->text,
                          .segments = whole->segments + from,
                          .n = whole->n - from,
                          .n_images = whole->n_images - head->n_images};
    return turbod_template_encode_media(kit->vtbl, kit->tok, &rest, true, kit->media, image_at, ids,
                                        n, err);
}

static turbo_status join(const turbod_dialogue *d, int32_t **ids, size_t *n, turbo_err *err)
{
    size_t all, bytes;
    int32_t *p = turbod_add(d->n_ids, *n, &all) && turbod_mul(all, sizeof *p, &bytes)
                     ? malloc(bytes ? bytes : 1)
                     : NULL;
    if (!p)
        return no_memory(err);
    memcpy(p, d->ids, d->n_ids * sizeof *p);
    memcpy(p + d->n_ids, *ids, *n * sizeof *p);
    free(*ids);
    *ids = p;
    *n = all;
    return TURBO_OK;
}

/* The pictures of all turns, image_at[i] the token that the i-th begins at. */
static turbo_status fill_slots(const turbod_dialogue *d, const size_t *image_at,
                               turbod_slots *slots, turbo_err *err)
{
    size_t k = 0;
    for (size_t i = 0; i < d->n; i++)
        for (size_t j = 0; j < d->turns[i].images.n; j++, k++)
            if (image_at[k] > INT32_MAX ||
                !turbod_slots_add(slots, (int32_t)image_at[k], d->turns[i].images.v[j].image))
                return no_memory(err);
    return TURBO_OK;
}

/* What is known of the beginning, then what comes behind it. */
static turbo_status go_on(const turbod_dialogue *d, size_t answered, turbod_render *whole,
                          const turbod_render *head, const turbod_chat_kit *kit, size_t *image_at,
                          int32_t **ids, size_t *n_ids, turbo_err *err)
{
    size_t known = count_images(d, answered);
    for (size_t i = 0; i < known; i++)
        image_at[i] = (size_t)d->image_at[i];
    turbo_status st = encode_rest(whole, head, kit, image_at + known, ids, n_ids, err);
    for (size_t i = known; i < whole->n_images && !st; i++)
        image_at[i] += d->n_ids;
    return st ? st : join(d, ids, n_ids, err);
}

turbo_status turbod_dialogue_prompt(const turbod_dialogue *d, const turbod_chat_kit *kit,
                                    int32_t **ids, size_t *n_ids, turbod_slots *slots,
                                    turbo_err *err)
{
    turbod_render whole = {0}, head = {0};
    size_t answered = d->n, *image_at = calloc(turbod_dialogue_images(d) + 1, sizeof *image_at);
    while (d->n_ids && answered && d->turns[answered - 1].ids_end != d->n_ids)
        answered--;
    *ids = NULL;
    turbo_status st = image_at ? render(d, d->n, kit, true, &whole, err) : no_memory(err);
    if (!st && answered && d->n_ids)
        st = render(d, answered, kit, false, &head, err);
    if (!st && head.n && begins_with(&whole, &head))
        st = go_on(d, answered, &whole, &head, kit, image_at, ids, n_ids, err);
    else if (!st)
        st = turbod_template_encode_media(kit->vtbl, kit->tok, &whole, false, kit->media, image_at,
                                          ids, n_ids, err);
    if (!st)
        st = fill_slots(d, image_at, slots, err);
    turbod_render_free(&whole);
    turbod_render_free(&head);
    free(image_at);
    if (st) {
        turbod_slots_free(slots);
        free(*ids);
        *ids = NULL;
    }
    return st;
}

turbo_status turbod_dialogue_answer(turbod_dialogue *d, const int32_t *prompt, size_t n_prompt,
                                    const turbod_slots *slots, const int32_t *ids, size_t n_ids,
                                    const char *text, size_t len, turbo_err *err)
{
    size_t all, bytes;
    turbod_message m = {.role = "assistant", .content = text, .content_len = len};
    if (!turbod_add(n_prompt, n_ids, &all) || !turbod_mul(all, sizeof *ids, &bytes))
        return no_memory(err);
    if (all > d->cap_ids) {
        int32_t *p = realloc(d->ids, bytes);
        if (!p)
            return no_memory(err);
        d->ids = p;
        d->cap_ids = all;
    }
    if (slots->n > d->cap_images) {
        int32_t *p = reallocarray(d->image_at, slots->n, sizeof *p);
        if (!p)
            return no_memory(err);
        d->image_at = p;
        d->cap_images = slots->n;
    }
    turbo_status st = turbod_dialogue_add(d, &m, err);
    if (st || !n_ids)
        return st;
    for (size_t i = 0; i < slots->n; i++)
        d->image_at[i] = slots->v[i].at;
    memcpy(d->ids, prompt, n_prompt * sizeof *ids);
    memcpy(d->ids + n_prompt, ids, n_ids * sizeof *ids);
    d->n_ids = d->turns[d->n - 1].ids_end = all;
    return TURBO_OK;
}

/* ---- bytes ------------------------------------------------------------------------------------------------ */

/* A turn: its four lengths, then role, name and content. */
typedef struct packed {
    uint64_t role, name, content, ids_end; /* name: UINT64_MAX when there is none */
} packed;

void turbod_dialogue_pack(const turbod_dialogue *d, turbod_buf *out)
{
    turbod_buf_add(out, "", 0);
    for (size_t i = 0; i < d->n; i++) {
        const turbod_turn *t = &d->turns[i];
        packed p = {strlen(t->role), t->name ? strlen(t->name) : UINT64_MAX, t->content_len,
                    t->ids_end};
        turbod_buf_add(out, &p, sizeof p);
        turbod_buf_str(out, t->role);
        if (t->name)
            turbod_buf_str(out, t->name);
        turbod_buf_add(out, t->content, t->content_len);
    }
}

static turbo_status damaged(turbo_err *err)
{
    return turbod_err(err, TURBO_EDATA, "the conversation in the file is damaged");
}

/* A string of n bytes at *at as text with an end. */
static turbo_status take_text(const char *bytes, size_t size, size_t *at, uint64_t n, char **out,
                              turbo_err *err)
{
    if (n > size - *at || !turbod_utf8_valid(bytes + *at, (size_t)n))
        return damaged(err);
    char *s = malloc((size_t)n + 1);
    if (!s)
        return no_memory(err);
    memcpy(s, bytes + *at, (size_t)n);
    s[n] = '\0';
    *at += (size_t)n;
    *out = s;
    return TURBO_OK;
}

static turbo_status unpack_turn(turbod_dialogue *d, const char *bytes, size_t n, size_t *at,
                                size_t n_ids, turbo_err *err)
{
    packed p;
    char *role = NULL, *name = NULL, *content = NULL;
    if (n - *at < sizeof p)
        return damaged(err);
    memcpy(&p, bytes + *at, sizeof p);
    *at += sizeof p;
    turbo_status st = take_text(bytes, n, at, p.role, &role, err);
    if (!st && p.name != UINT64_MAX)
        st = take_text(bytes, n, at, p.name, &name, err);
    if (!st)
        st = take_text(bytes, n, at, p.content, &content, err);
    if (!st && (!*role || p.ids_end > n_ids))
        st = damaged(err);
    if (!st) {
        turbod_message m = {.role = role,
                            .name = name,
                            .content = content,
                            .content_len = (size_t)p.content};
        st = turbod_dialogue_add(d, &m, err);
    }
    if (!st)
        d->turns[d->n - 1].ids_end = (size_t)p.ids_end;
    free(role);
    free(name);
    free(content);
    return st;
}

turbo_status turbod_dialogue_unpack(turbod_dialogue *d, const char *bytes, size_t n,
                                    const int32_t *ids, size_t n_ids, turbo_err *err)
{
    size_t at = 0, size;
    turbo_status st = TURBO_OK;
    while (!st && at < n)
        st = unpack_turn(d, bytes, n, &at, n_ids, err);
    if (!st && (!turbod_mul(n_ids ? n_ids : 1, sizeof *ids, &size) || !(d->ids = malloc(size))))
        st = no_memory(err);
    if (st) {
        turbod_dialogue_free(d);
        return st;
    }
    memcpy(d->ids, ids, n_ids * sizeof *ids);
    d->n_ids = d->cap_ids = n_ids;
    return TURBO_OK;
}
