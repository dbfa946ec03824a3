/* core/engine/media.c: see media.h. */
#include "engine/media.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/host.h"
#include "sched/scheduler.h"
#include "sched/state.h"
#include "turbo/ext/media.h"
#include "util/checked.h"
#include "util/err.h"

struct turbod_features {
    turbod_features *prev, *next; /* the list of the store, used last first */
    int32_t users; /* under mu */
    bool ready; /* engine thread */
    int32_t place; /* of its rows, in pictures from the first */
    turbod_image *image;
};

/* What a store holds at most. */
typedef struct store_size {
    size_t row_bytes, entry_bytes; /* of the rows of one picture; with its pixels */
    int32_t n; /* pictures; 0: not one */
} store_size;

struct turbod_media {
    turbo_media_vtbl vtbl;
    void *model;
    turbod_metrics *metrics;
    turbod_media_facts facts;
    turbok_device *device;
    store_size size;
    uint64_t most, reserved; /* bytes of the store; with the workspace */
    void *workspace;
    size_t workspace_bytes;
    char *rows; /* [size.n * n_rows, E] act, where ops work */
    pthread_mutex_t mu;
    /* under mu */
    turbod_features *first, *last;
    int32_t n; /* pictures it holds */
};

static turbo_status find_vtbl(const turbod_registry *r, const turbo_model_vtbl *vtbl,
                              turbo_media_vtbl *out, turbo_err *err)
{
    const turbo_media_vtbl *v = turbod_registry_extension(r, vtbl, TURBO_MEDIA_ID);
    *out = (turbo_media_vtbl){0};
    if (!v)
        return TURBO_OK;
    memcpy(out, v, v->size < sizeof *out ? v->size : sizeof *out);
    if (!out->describe || !out->embed)
        return turbod_err(err, TURBO_EABI, "the plugin of model %s leaves slots of %s empty",
                          vtbl->id, TURBO_MEDIA_ID);
    return TURBO_OK;
}

turbo_status turbod_media_describe(const turbod_registry *r, const turbo_model_vtbl *vtbl,
                                   const turbo_config *config, int32_t vocab,
                                   turbod_media_facts *facts, turbo_err *err)
{
    turbo_media_vtbl v;
    turbo_media_info i = {.size = sizeof i};
    *facts = (turbod_media_facts){0};
    turbo_status st = find_vtbl(r, vtbl, &v, err);
    if (st || !v.describe)
        return st;
    st = v.describe(turbod_host_table(), config, &i, err);
    if (st)
        return st;
    if (i.fit < TURBO_FIT_CROP || i.fit > TURBO_FIT_STRETCH || i.width < 1 || i.width > 4096 ||
        i.height < 1 || i.height > 4096 || i.n_rows < 1 || i.n_rows > 65536 || i.placeholder < 0 ||
        i.placeholder >= vocab ||
        (i.fit != TURBO_FIT_STRETCH && (i.edge < i.width || i.edge < i.height || i.edge > 4096)))
        return turbod_err(err, TURBO_EINTERNAL,
                          "model %s describes pictures outside the documented ranges", vtbl->id);
    facts->n_rows = i.n_rows;
    facts->placeholder = i.placeholder;
    facts->workspace = i.workspace;
    facts->fit =
        (turbod_image_fit){.fit = i.fit, .edge = i.edge, .width = i.width, .height = i.height};
    memcpy(facts->fit.pad, i.pad, sizeof facts->fit.pad);
    return TURBO_OK;
}

/* What is taken for the workspace of the tower; false: more than there can be. */
static bool workspace_bytes(const turbod_media_facts *facts, size_t *bytes)
{
    return turbod_round_up(facts->workspace ? (size_t)facts->workspace : 64, 64, bytes);
}

uint64_t turbod_media_bytes(const turbod_media_facts *facts, uint64_t most)
{
    size_t bytes;
    return facts->n_rows && workspace_bytes(facts, &bytes) &&
                   turbod_add(bytes, (size_t)most, &bytes)
               ? bytes
               : 0;
}

static size_t act_bytes(const turbok_device *d)
{
    return turbok_device_ops(d)->act_dtype == TURBO_F32 ? 4 : 2;
}

/* False: one picture is more than there can be. row: bytes of one. */
static bool size_of_store(const turbod_media_facts *facts, size_t row, uint64_t most, store_size *s)
{
    size_t pixels;
    *s = (store_size){0};
    if (!turbod_mul(row, (size_t)facts->n_rows, &s->row_bytes) ||
        !turbod_mul((size_t)facts->fit.width * 3, (size_t)facts->fit.height, &pixels) ||
        !turbod_add(s->row_bytes, pixels, &s->entry_bytes))
        return false;
    uint64_t n = most / s->entry_bytes, limit = (uint64_t)(INT32_MAX / facts->n_rows);
    s->n = (int32_t)(n < limit ? n : limit);
    return true;
}

/* Of all rows: no more than `most`, but for the end. */
static uint64_t rows_bytes(const store_size *s)
{
    return ((uint64_t)s->n * s->row_bytes + 63) / 64 * 64;
}

uint64_t turbod_media_device_bytes(const turbok_device *d, const turbod_media_facts *facts,
                                   int32_t E, uint64_t most)
{
    store_size s;
    size_t bytes;
    return facts->n_rows && workspace_bytes(facts, &bytes) &&
                   size_of_store(facts, (size_t)E * act_bytes(d), most, &s)
               ? bytes + rows_bytes(&s)
               : 0;
}

uint64_t turbod_media_reserved(const turbod_media *m)
{
    return m->reserved;
}

/* Of the host it is not touched before it is used: a large store that stays empty costs nothing there. */
static turbo_status take_memory(turbod_media *m, turbo_err *err)
{
    bool host = turbok_device_on_host(m->device);
    uint64_t rows = rows_bytes(&m->size);
    if (workspace_bytes(&m->facts, &m->workspace_bytes))
        m->workspace = host ? aligned_alloc(64, m->workspace_bytes)
                            : turbok_space_new(m->device, m->workspace_bytes);
    if (!m->workspace)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the workspace of pictures (%llu MiB)",
                          (unsigned long long)(m->facts.workspace >> 20));
    m->rows = host ? aligned_alloc(64, rows) : turbok_space_new(m->device, rows);
    if (!m->rows)
        return turbod_err(err, TURBO_ENOMEM, "no memory for pictures (%llu MiB); lower image_cache",
                          (unsigned long long)(rows >> 20));
    m->reserved = m->workspace_bytes + (host ? m->most : rows);
    return TURBO_OK;
}

turbo_status turbod_media_open(const turbod_registry *r, const turbo_model_vtbl *vtbl, void *model,
                               turbok_device *d, const turbod_media_facts *facts, int32_t E,
                               uint64_t most, turbod_metrics *metrics, turbod_media **out,
                               turbo_err *err)
{
    turbod_media *m = calloc(1, sizeof *m);
    if (!m)
        return turbod_err(err, TURBO_ENOMEM, "no memory for pictures");
    turbo_status st = find_vtbl(r, vtbl, &m->vtbl, err);
    pthread_mutex_init(&m->mu, NULL);
    m->model = model;
    m->metrics = metrics;
    m->facts = *facts;
    m->device = d;
    m->most = most;
    if (!st && !size_of_store(facts, (size_t)E * act_bytes(d), most, &m->size))
        st = turbod_err(err, TURBO_ELIMIT, "pictures of this model are too large");
    if (!st && !m->size.n)
        st =
            turbod_err(err, TURBO_EINVAL,
                       "image_cache is %llu MiB, one picture of this model takes %zu MiB; raise it",
                       (unsigned long long)(most >> 20), (m->size.entry_bytes >> 20) + 1);
    if (!st)
        st = take_memory(m, err);
    if (st)
        turbod_media_free(m);
    else
        *out = m;
    return st;
}

static void unlink_one(turbod_media *m, turbod_features *f)
{
    if (f->prev)
        f->prev->next = f->next;
    else
        m->first = f->next;
    if (f->next)
        f->next->prev = f->prev;
    else
        m->last = f->prev;
    f->prev = f->next = NULL;
}

static void put_first(turbod_media *m, turbod_features *f)
{
    f->next = m->first;
    if (m->first)
        m->first->prev = f;
    else
        m->last = f;
    m->first = f;
}

void turbod_media_free(turbod_media *m)
{
    if (!m)
        return;
    for (turbod_features *f = m->first, *next; f; f = next) {
        next = f->next;
        turbod_image_release(f->image);
        free(f);
    }
    if (turbok_device_on_host(m->device)) {
        free(m->workspace);
        free(m->rows);
    } else {
        turbok_space_free(m->device, m->workspace, m->workspace_bytes);
        turbok_space_free(m->device, m->rows, rows_bytes(&m->size));
    }
    pthread_mutex_destroy(&m->mu);
    free(m);
}

/* Under mu: an entry that has a place and is in no list: a new one, or the one used longest ago. */
static turbod_features *make_room(turbod_media *m)
{
    turbod_features *f = m->last;
    if (m->n < m->size.n) {
        f = calloc(1, sizeof *f);
        if (f)
            f->place = m->n++;
        return f;
    }
    while (f && f->users)
        f = f->prev;
    if (f) {
        unlink_one(m, f);
        turbod_image_release(f->image);
        f->ready = false;
    }
    return f;
}

/* Under mu: the entry of a picture, one user more; NULL: no room, or no memory. */
static turbod_features *hold(turbod_media *m, turbod_image *image)
{
    turbod_features *f = m->first;
    while (f && memcmp(f->image->digest, image->digest, sizeof image->digest))
        f = f->next;
    atomic_fetch_add_explicit(&m->metrics->image_queries, 1, memory_order_relaxed);
    if (f) {
        atomic_fetch_add_explicit(&m->metrics->image_hits, 1, memory_order_relaxed);
        unlink_one(m, f);
    } else {
        f = make_room(m);
        if (!f)
            return NULL;
        f->image = turbod_image_ref(image);
    }
    put_first(m, f);
    f->users++;
    return f;
}

turbo_status turbod_media_take(turbod_media *m, const turbod_slot *slots, int32_t n,
                               turbod_seen *seen, turbo_err *err)
{
    int32_t got = 0;
    if (n > m->size.n)
        return turbod_err(err, TURBO_ELIMIT,
                          "%d images take more memory than image_cache allows (%llu MiB)", n,
                          (unsigned long long)(m->most >> 20));
    pthread_mutex_lock(&m->mu);
    for (; got < n; got++) {
        seen[got] = (turbod_seen){.at = slots[got].at, .n_rows = m->facts.n_rows};
        seen[got].features = hold(m, slots[got].image);
        if (!seen[got].features)
            break;
    }
    pthread_mutex_unlock(&m->mu);
    if (got == n)
        return TURBO_OK;
    turbod_media_give(m, seen, got);
    return turbod_err(err, TURBO_EBUSY,
                      "the images of other requests fill the memory for images; try again later");
}

void turbod_media_give(turbod_media *m, turbod_seen *seen, int32_t n)
{
    if (n) {
        pthread_mutex_lock(&m->mu);
        for (int32_t i = 0; i < n; i++)
            seen[i].features->users--;
        pthread_mutex_unlock(&m->mu);
    }
}

const uint8_t *turbod_media_digest(const turbod_features *f)
{
    return f->image->digest;
}

static turbo_status compute_one(turbod_media *m, turbod_features *f, turbo_exec *x, turbo_err *err)
{
    if (f->ready)
        return TURBO_OK;
    turbo_status st = turbok_device_enter(m->device, err);
    if (!st)
        st = m->vtbl.embed(m->model, x, f->image->pixels, m->workspace, m->facts.workspace,
                           m->rows + (size_t)f->place * m->size.row_bytes, err);
    f->ready = !st;
    return st;
}

turbo_status turbod_media_compute(turbod_media *m, const turbod_sched *s, turbo_exec *x,
                                  turbo_err *err)
{
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < s->n_items && !st; i++) {
        const turbod_request *r = s->items[i].req;
        int32_t from = r->computed, to = from + s->items[i].n_new;
        for (int32_t k = 0; k < r->n_seen && !st; k++)
            if (r->seen[k].at < to && r->seen[k].at + r->seen[k].n_rows > from)
                st = compute_one(m, r->seen[k].features, x, err);
    }
    return st;
}

const void *turbod_media_rows(const turbod_media *m)
{
    return m->rows;
}

int32_t turbod_media_first_row(const turbod_media *m, const turbod_features *f)
{
    return f->place * m->facts.n_rows;
}
