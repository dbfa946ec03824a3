/* core/engine/snapshot.c: see snapshot.h.
 * File: header, note, ids, KV blocks as the pool stores them, and a checksum over all of it. */
#include "engine/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/state.h"
#include "sched/holding.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/sha256.h"

#define VERSION 2
#define MOST_NOTE ((uint64_t)64 << 20)

static const turbok_kv_key checksum_key = {0x7475726264206b76u, 1};

typedef struct header {
    char magic[8]; /* "turbo-kv" */
    uint32_t version, header_bytes;
    uint8_t model[32]; /* fingerprint of the model folder */
    uint8_t format[32]; /* digest of the KV dims and the device's instruction set */
    uint8_t tenant[32]; /* digest of the tenant's name */
    uint64_t n_note, n_ids, n_kept, n_blocks, block_bytes;
    int32_t kv_dtype, block_tokens; /* in the digest too; here for the message of a refusal */
} header;

static void fill_header(const turbod_engine *e, const char *tenant, header *h)
{
    struct {
        turbok_kv_dims dims;
        int32_t isa;
        int32_t cuda; /* blocks on a card are laid out in another way */
    } format;
    memset(h, 0, sizeof *h);
    memset(&format, 0, sizeof format);
    memcpy(h->magic, "turbo-kv", 8);
    h->version = VERSION;
    h->header_bytes = sizeof *h;
    memcpy(h->model, e->fingerprint, 32);
    format.dims = *turbok_kv_pool_dims(e->pool);
    format.isa = (int32_t)turbok_device_isa(e->device);
    format.cuda = !turbok_device_on_host(e->device);
    turbod_sha256(&format, sizeof format, h->format);
    turbod_sha256(tenant, strlen(tenant), h->tenant);
    h->block_bytes = turbok_kv_block_bytes(turbok_kv_pool_dims(e->pool));
    h->kv_dtype = format.dims.dtype;
    h->block_tokens = format.dims.block_tokens;
}

static turbo_status ready(const turbod_engine *e, turbo_err *err)
{
    if (!e->prefix_caching)
        return turbod_err(err, TURBO_EUNSUPPORTED, "snapshots need enable_prefix_caching = true");
    return e->has_fingerprint
               ? TURBO_OK
               : turbod_err(err, TURBO_EIO, "the model folder could not be read to know it again");
}

/* ---- a file with a checksum ------------------------------------------------------------------------------ */

typedef struct stream {
    int fd;
    int error; /* errno of a read that failed, 0 none */
    turbok_hash sum;
    uint64_t bytes;
} stream;

static bool put(stream *f, const void *data, size_t n)
{
    const char *p = data;
    turbok_hash_add(&f->sum, data, n);
    f->bytes += n;
    while (n) {
        ssize_t w = write(f->fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
}

static bool get(stream *f, void *data, size_t n)
{
    char *p = data;
    size_t left = n;
    while (left) {
        ssize_t r = read(f->fd, p, left);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            f->error = errno;
        if (r <= 0)
            return false;
        p += r;
        left -= (size_t)r;
    }
    turbok_hash_add(&f->sum, data, n);
    f->bytes += n;
    return true;
}

/* ---- keys of a text ---------------------------------------------------------------------------------------- */

static turbok_kv_key *keys_of(const turbod_engine *e, const turbod_snapshot *s)
{
    int32_t bt = e->facts.block_tokens;
    turbok_kv_key *keys = calloc(s->n_ids / (size_t)bt + 1, sizeof *keys);
    if (keys) {
        keys[0] = turbod_engine_root(e, s->tenant, "", 0);
        for (size_t i = 0; i < s->n_ids / (size_t)bt; i++)
            keys[i + 1] = turbok_kv_chain(e->pool, keys[i], s->ids + i * (size_t)bt, NULL, 0);
    }
    return keys;
}

/* ---- save -------------------------------------------------------------------------------------------------- */

/* Takes references to what is cached of the text, so that nobody writes into it meanwhile. */
static turbo_status lease(turbod_engine *e, const turbod_snapshot *s, turbok_kv_table *t,
                          turbo_err *err)
{
    int32_t soon, n = (int32_t)s->n_ids;
    turbok_kv_key *keys = keys_of(e, s);
    turbo_status st = keys ? turbok_kv_table_init(t, e->pool, n > 0 ? n : 1, err)
                           : turbod_err(err, TURBO_ENOMEM, "no memory for a snapshot");
    if (!st) {
        turbod_visit(e);
        turbok_kv_match(e->pool, t, keys, s->ids, n, 0, &soon);
        e->sched.n_lent += t->n;
        turbod_leave(e);
    }
    free(keys);
    return st;
}

static void give_back(turbod_engine *e, turbok_kv_table *t)
{
    turbod_visit(e);
    e->sched.n_lent -= t->n;
    turbok_kv_table_free(t, e->pool);
    turbod_publish_gauges(e);
    turbod_leave(e);
}

/* One block into memory (out) or out of it (in). The engine goes on meanwhile, but where a device copies: that takes
 * one command after the other, and only good news says that the copy is good. */
static turbo_status move_block(turbod_engine *e, int32_t block, void *out, const void *in,
                               turbo_err *err)
{
    bool alone = !turbok_device_on_host(e->device);
    if (alone)
        turbod_visit(e);
    if (out)
        turbok_kv_block_read(e->pool, block, out);
    else
        turbok_kv_block_write(e->pool, block, in);
    turbo_status st = turbok_device_wait(e->device, err);
    if (alone)
        turbod_leave(e);
    return st;
}

static turbo_status write_all(turbod_engine *e, stream *f, const header *h,
                              const turbod_snapshot *s, const turbok_kv_table *t, char *block,
                              turbo_err *err)
{
    turbo_status st = TURBO_OK;
    bool ok = put(f, h, sizeof *h) && put(f, s->note, s->n_note) &&
              put(f, s->ids, s->n_ids * sizeof *s->ids);
    for (int32_t i = 0; i < t->n && ok && !st; i++) {
        st = move_block(e, t->blocks[i], block, NULL, err);
        ok = st || put(f, block, h->block_bytes);
    }
    turbok_kv_key sum = turbok_hash_end(&f->sum);
    if (!st && !(ok && put(f, &sum, sizeof sum) && !fsync(f->fd)))
        st = turbod_err(err, TURBO_EIO, "the snapshot could not be written: %s", strerror(errno));
    return st;
}

static turbo_status write_file(turbod_engine *e, const char *folder, const char *name,
                               turbod_snapshot *s, const turbok_kv_table *t, turbo_err *err)
{
    header h;
    fill_header(e, s->tenant, &h);
    h.n_note = s->n_note;
    h.n_ids = s->n_ids;
    h.n_kept = (uint64_t)t->len;
    h.n_blocks = (uint64_t)t->n;
    char temp[300];
    int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char *block = malloc(h.block_bytes);
    stream f = {.fd = -1};
    turbo_status st = TURBO_OK;
    snprintf(temp, sizeof temp, ".%.200s.%ld.%p", name, (long)getpid(), (void *)block);
    turbok_hash_init(&f.sum, checksum_key);
    if (!block)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for a snapshot");
    else if (dir >= 0)
        f.fd = openat(dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (!st && f.fd < 0)
        st = turbod_err(err, TURBO_EIO, "slot_save_path cannot be written: %s", strerror(errno));
    if (!st)
        st = write_all(e, &f, &h, s, t, block, err);
    if (!st && (renameat(dir, temp, dir, name) || fsync(dir)))
        st = turbod_err(err, TURBO_EIO, "the snapshot could not be written: %s", strerror(errno));
    if (f.fd >= 0)
        close(f.fd);
    if (st && f.fd >= 0)
        unlinkat(dir, temp, 0);
    if (dir >= 0)
        close(dir);
    free(block);
    s->n_kept = (size_t)t->len;
    s->bytes = f.bytes;
    return st;
}

turbo_status turbod_snapshot_save(turbod_engine *e, const char *folder, const char *name,
                                  turbod_snapshot *s, turbo_err *err)
{
    turbok_kv_table t = {0};
    turbo_status st = ready(e, err);
    if (!st && !turbod_file_name_ok(name))
        st = turbod_err(err, TURBO_EINVAL,
                        "the file name must consist of letters, digits, '.', '_' and '-'");
    if (!st)
        st = lease(e, s, &t, err);
    if (st)
        return st;
    st = write_file(e, folder, name, s, &t, err);
    give_back(e, &t);
    return st;
}

/* ---- load -------------------------------------------------------------------------------------------------- */

static turbo_status damaged(const stream *f, turbo_err *err)
{
    if (f->error)
        return turbod_err(err, TURBO_EIO, "the snapshot cannot be read: %s", strerror(f->error));
    return turbod_err(err, TURBO_EDATA, "the snapshot is damaged; it cannot be restored");
}

static turbo_status check_header(const turbod_engine *e, const turbod_snapshot *s, const stream *f,
                                 const header *h, uint64_t size, turbo_err *err)
{
    header want;
    size_t note_ids, blocks, all;
    fill_header(e, s->tenant, &want);
    if (memcmp(h->magic, want.magic, 8))
        return turbod_err(err, TURBO_EDATA, "the file is no snapshot");
    if (h->version != VERSION || h->header_bytes != sizeof *h)
        return turbod_err(err, TURBO_EDATA, "the snapshot has format %u, this version reads %d",
                          h->version, VERSION);
    if (!turbod_equal32(h->tenant, want.tenant))
        return turbod_err(err, TURBO_ENOENT, "there is no such snapshot");
    if (!turbod_equal32(h->model, want.model))
        return turbod_err(
            err, TURBO_EDATA,
            "the snapshot was made with another model; it fits only the one it was made "
            "with");
    if (!turbod_equal32(h->format, want.format) || h->block_bytes != want.block_bytes)
        return h->kv_dtype == want.kv_dtype && h->block_tokens == want.block_tokens
                   ? turbod_err(err, TURBO_EDATA,
                                "the snapshot was made with another instruction set or device; isa "
                                "and device must be what they were")
                   : turbod_err(
                         err, TURBO_EDATA,
                         "the snapshot holds %s keys and values in blocks of %d tokens, this "
                         "server has %s in blocks of %d; quant_policy, kv_dtype and "
                         "cache_block_seq_len must be what they were",
                         turbok_kv_type_name(h->kv_dtype), h->block_tokens,
                         turbok_kv_type_name(want.kv_dtype), want.block_tokens);
    int64_t bt = e->facts.block_tokens;
    if (h->n_note > MOST_NOTE || h->n_ids > INT32_MAX || h->n_kept > h->n_ids ||
        h->n_blocks != (h->n_kept + (uint64_t)bt - 1) / (uint64_t)bt ||
        !turbod_mul(h->n_ids, sizeof(int32_t), &note_ids) ||
        !turbod_add(note_ids, h->n_note, &note_ids) ||
        !turbod_mul(h->n_blocks, h->block_bytes, &blocks) || !turbod_add(note_ids, blocks, &all) ||
        size != all + sizeof *h + sizeof(turbok_kv_key))
        return damaged(f, err);
    if (h->n_ids > (uint64_t)e->facts.session_len)
        return turbod_err(err, TURBO_EDATA, "the snapshot has %d tokens, session_len here is %d",
                          (int)h->n_ids, (int)e->facts.session_len);
    return TURBO_OK;
}

/* Free blocks for the first of those in the file; fewer when the pool has fewer to spare. */
static void take_blocks(turbod_engine *e, turbok_kv_table *t, uint64_t n)
{
    turbod_visit(e);
    while ((uint64_t)t->n < n) {
        int32_t b = turbok_kv_block_get(e->pool);
        if (b < 0)
            break;
        t->blocks[t->n++] = b;
        e->sched.n_lent++;
    }
    turbod_leave(e);
}

static turbo_status read_blocks(turbod_engine *e, stream *f, const header *h,
                                const turbok_kv_table *t, turbo_err *err)
{
    turbok_kv_key sum, want;
    char *block = malloc(h->block_bytes);
    turbo_status st = block ? TURBO_OK : turbod_err(err, TURBO_ENOMEM, "no memory for a snapshot");
    for (uint64_t i = 0; i < h->n_blocks && !st; i++) {
        if (!get(f, block, h->block_bytes))
            st = damaged(f, err);
        else if (i < (uint64_t)t->n)
            st = move_block(e, t->blocks[i], NULL, block, err);
    }
    free(block);
    want = turbok_hash_end(&f->sum);
    if (!st && (!get(f, &sum, sizeof sum) || memcmp(&sum, &want, sizeof sum)))
        st = damaged(f, err);
    return st;
}

/* From now on the text is found in the cache. */
static turbo_status publish(turbod_engine *e, turbod_snapshot *s, turbok_kv_table *t, size_t n_kept,
                            turbo_err *err)
{
    int32_t bt = e->facts.block_tokens;
    turbok_kv_key *keys = keys_of(e, s);
    if (!keys)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a snapshot");
    size_t room = (size_t)t->n * (size_t)bt;
    s->n_kept = n_kept < room ? n_kept : room;
    turbod_visit(e);
    for (int32_t i = 0; i < t->n; i++) {
        size_t left = s->n_kept - (size_t)i * (size_t)bt;
        bool full = left >= (size_t)bt;
        turbok_kv_publish(e->pool, t->blocks[i], keys[i], full ? &keys[i + 1] : NULL,
                          s->ids + (size_t)i * (size_t)bt, full ? bt : (int32_t)left, false, true);
    }
    turbod_leave(e);
    free(keys);
    return TURBO_OK;
}

static turbo_status read_file(turbod_engine *e, stream *f, uint64_t size, turbod_snapshot *s,
                              turbok_kv_table *t, turbo_err *err)
{
    header h;
    if (!get(f, &h, sizeof h))
        return f->error ? damaged(f, err) : turbod_err(err, TURBO_EDATA, "the file is no snapshot");
    turbo_status st = check_header(e, s, f, &h, size, err);
    if (st)
        return st;
    s->n_ids = h.n_ids;
    s->n_note = h.n_note;
    s->ids = calloc(h.n_ids + 1, sizeof *s->ids);
    s->note = calloc(h.n_note + 1, 1);
    if (!s->ids || !s->note)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a snapshot");
    if (!get(f, s->note, h.n_note) || !get(f, s->ids, h.n_ids * sizeof *s->ids))
        return damaged(f, err);
    for (size_t i = 0; i < s->n_ids; i++)
        if (s->ids[i] < 0 || s->ids[i] >= e->facts.model.vocab)
            return damaged(f, err);
    st = turbok_kv_table_init(t, e->pool, h.n_ids ? (int32_t)h.n_ids : 1, err);
    if (st)
        return st;
    take_blocks(e, t, h.n_blocks);
    st = read_blocks(e, f, &h, t, err);
    return st ? st : publish(e, s, t, h.n_kept, err);
}

/* A file of this folder and nothing else: no link, no fifo that would hang, no folder. */
static turbo_status open_file(const char *folder, const char *name, stream *f, struct stat *file,
                              turbo_err *err)
{
    if (!turbod_file_name_ok(name))
        return turbod_err(err, TURBO_EINVAL,
                          "the file name must consist of letters, digits, '.', '_' and '-'");
    int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0)
        f->fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
    int why = errno;
    if (dir >= 0)
        close(dir);
    if (dir >= 0 && f->fd < 0 && why == ENOENT)
        return turbod_err(err, TURBO_ENOENT, "there is no such snapshot");
    if (dir >= 0 && f->fd < 0 && why == ELOOP)
        return turbod_err(err, TURBO_EDATA, "the snapshot is a link; copy the file instead");
    if (f->fd < 0 || fstat(f->fd, file))
        return turbod_err(err, TURBO_EIO, "the snapshot cannot be opened: %s",
                          strerror(f->fd < 0 ? why : errno));
    return S_ISREG(file->st_mode) ? TURBO_OK
                                  : turbod_err(err, TURBO_EDATA, "the snapshot is no regular file");
}

turbo_status turbod_snapshot_load(turbod_engine *e, const char *folder, const char *name,
                                  turbod_snapshot *s, turbo_err *err)
{
    struct stat file;
    turbok_kv_table t = {0};
    stream f = {.fd = -1};
    s->ids = NULL;
    s->note = NULL;
    turbo_status st = ready(e, err);
    if (!st)
        st = open_file(folder, name, &f, &file, err);
    turbok_hash_init(&f.sum, checksum_key);
    if (!st)
        st = read_file(e, &f, (uint64_t)file.st_size, s, &t, err);
    if (f.fd >= 0)
        close(f.fd);
    if (t.blocks)
        give_back(e, &t);
    s->bytes = f.bytes;
    if (st) {
        free(s->ids);
        free(s->note);
        s->ids = NULL;
        s->note = NULL;
    }
    return st;
}
