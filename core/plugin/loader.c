/* core/plugin/loader.c: see loader.h. Checks in order: the file, its ELF header, the entry symbol,
 * the descriptor's frozen first 16 bytes, then each table. */
#include "plugin/loader.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/err.h"

#define KNOWN_NEEDS UINT64_C(0) /* feature bits this host offers */

turbo_status turbod_plugin_safe(const struct stat *st, const char *path, turbo_err *err)
{
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return turbod_err(err, TURBO_EABI, "%s belongs to user %u; root or user %u must own it",
                          path, st->st_uid, geteuid());
    if (st->st_mode & S_IWOTH)
        return turbod_err(err, TURBO_EABI, "%s is writable by everyone (mode %04o); chmod o-w it",
                          path, st->st_mode & 07777u);
    /* A group of the owner's own number is his private one: umask 002 is common with those. */
    if ((st->st_mode & S_IWGRP) && st->st_gid != st->st_uid)
        return turbod_err(err, TURBO_EABI, "%s is writable by group %u (mode %04o); chmod g-w it",
                          path, st->st_gid, st->st_mode & 07777u);
    return TURBO_OK;
}

/* A mapped page behind the end of the file is a SIGBUS later, so every table and segment must end
 * inside it. */
static turbo_status check_extent(int fd, const char *path, const Elf64_Ehdr *h, uint64_t size,
                                 turbo_err *err)
{
    uint64_t end, phend;
    if (__builtin_mul_overflow((uint64_t)h->e_shnum, (uint64_t)h->e_shentsize, &end) ||
        __builtin_add_overflow(end, h->e_shoff, &end))
        end = UINT64_MAX;
    if (__builtin_add_overflow((uint64_t)h->e_phnum * sizeof(Elf64_Phdr), h->e_phoff, &phend))
        phend = UINT64_MAX;
    end = phend > end ? phend : end;
    for (uint64_t i = 0; end <= size && h->e_phentsize == sizeof(Elf64_Phdr) && i < h->e_phnum;
         i++) {
        Elf64_Phdr ph;
        uint64_t last;
        if (pread(fd, &ph, sizeof ph, (off_t)(h->e_phoff + i * sizeof ph)) != (ssize_t)sizeof ph)
            return turbod_err(err, TURBO_EIO, "%s: %s", path, strerror(errno));
        if (ph.p_type == PT_LOAD)
            end = __builtin_add_overflow(ph.p_offset, ph.p_filesz, &last) ? UINT64_MAX
                  : last > end                                            ? last
                                                                          : end;
    }
    if (end > size)
        return turbod_err(err, TURBO_EABI, "%s is truncated: %llu bytes, its parts end at %llu",
                          path, (unsigned long long)size, (unsigned long long)end);
    return TURBO_OK;
}

static turbo_status check_file(int fd, const char *path, turbo_err *err)
{
    struct stat st;
    Elf64_Ehdr h;
    if (fstat(fd, &st))
        return turbod_err(err, TURBO_EIO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return turbod_err(err, TURBO_EABI, "%s is not a regular file", path);
    turbo_status status = turbod_plugin_safe(&st, path, err);
    if (status)
        return status;
    ssize_t got = pread(fd, &h, sizeof h, 0);
    if (got < (ssize_t)SELFMAG || memcmp(h.e_ident, ELFMAG, SELFMAG))
        return turbod_err(err, TURBO_EABI, "%s is not an ELF shared object (%lld bytes)", path,
                          (long long)st.st_size);
    if (got < (ssize_t)EI_NIDENT)
        return turbod_err(err, TURBO_EABI, "%s is truncated: %lld bytes", path,
                          (long long)st.st_size);
    if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_ident[EI_DATA] != ELFDATA2LSB)
        return turbod_err(err, TURBO_EABI,
                          "%s is ELF class %d, data %d; class 2, data 1 are needed", path,
                          h.e_ident[EI_CLASS], h.e_ident[EI_DATA]);
#if defined(__x86_64__)
    const int machine = EM_X86_64;
#else
    const int machine = EM_AARCH64;
#endif
    if (got < (ssize_t)sizeof h)
        return turbod_err(err, TURBO_EABI, "%s is truncated: %lld bytes, its header needs %zu",
                          path, (long long)st.st_size, sizeof h);
    if (h.e_machine != machine || h.e_type != ET_DYN)
        return turbod_err(err, TURBO_EABI, "%s is for machine %d, type %d; %d and %d are needed",
                          path, h.e_machine, h.e_type, machine, ET_DYN);
    return check_extent(fd, path, &h, (uint64_t)st.st_size, err);
}

static int good_id(const char *id)
{
    size_t n = id ? strnlen(id, 40) : 0;
    if (n < 1 || n > 31)
        return 0;
    return strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == n;
}

/* Copies min(size) bytes of a table into zeroed host memory. size is the table's first field. */
static turbo_status copy_table(const char *path, const char *kind, const void *from, void *to,
                               uint32_t host_size, uint32_t least, turbo_err *err)
{
    uint32_t size;
    memcpy(&size, from, sizeof size);
    if (size < least || size > 65536)
        return turbod_err(err, TURBO_EABI, "%s: a %s table has size %u; at least %u are needed",
                          path, kind, size, least);
    memset(to, 0, host_size);
    memcpy(to, from, size < host_size ? size : host_size);
    return TURBO_OK;
}

typedef struct slot {
    const char *name;
    size_t offset;
} slot;

static turbo_status check_slots(const char *path, const char *kind, const void *table,
                                const char *id, const slot *slots, size_t n, turbo_err *err)
{
    if (!good_id(id))
        return turbod_err(err, TURBO_EABI,
                          "%s: a %s has the id \"%.40s\"; 1 to 31 of a-z, 0-9 and '-' are needed",
                          path, kind, id ? id : "(null)");
    for (size_t i = 0; i < n; i++) {
        void *p;
        memcpy(&p, (const char *)table + slots[i].offset, sizeof p);
        if (!p)
            return turbod_err(err, TURBO_EABI, "%s: the %s \"%s\" lacks the slot %s", path, kind,
                              id, slots[i].name);
    }
    return TURBO_OK;
}

#define SLOT(type, name)                                                                           \
    {                                                                                              \
#name, offsetof(type, name)                                                                \
    }
#define END_OF(type, name) ((uint32_t)(offsetof(type, name) + sizeof(((type *)0)->name)))

static turbo_status copy_models(turbod_plugin *p, turbo_err *err)
{
    static const slot slots[] = {
        SLOT(turbo_model_vtbl, probe),   SLOT(turbo_model_vtbl, describe),
        SLOT(turbo_model_vtbl, expect),  SLOT(turbo_model_vtbl, workspace),
        SLOT(turbo_model_vtbl, open),    SLOT(turbo_model_vtbl, close),
        SLOT(turbo_model_vtbl, forward),
    };
    const turbo_model_vtbl *const *v = p->desc.models;
    for (; v && *v; v++) {
        turbo_model_vtbl *to = &p->models[p->n_models];
        if (p->n_models == TURBOD_MAX_VTBLS)
            return turbod_err(err, TURBO_EABI, "%s offers more than %d models", p->path,
                              TURBOD_MAX_VTBLS);
        turbo_status st = copy_table(p->path, "model", *v, to, sizeof *to,
                                     END_OF(turbo_model_vtbl, forward), err);
        if (!st)
            st = check_slots(p->path, "model", to, to->id, slots, sizeof slots / sizeof slots[0],
                             err);
        if (st)
            return st;
        p->n_models++;
    }
    return TURBO_OK;
}

static turbo_status copy_tokenizers(turbod_plugin *p, turbo_err *err)
{
    static const slot slots[] = {
        SLOT(turbo_tokenizer_vtbl, probe),  SLOT(turbo_tokenizer_vtbl, open),
        SLOT(turbo_tokenizer_vtbl, close),  SLOT(turbo_tokenizer_vtbl, info),
        SLOT(turbo_tokenizer_vtbl, encode), SLOT(turbo_tokenizer_vtbl, piece),
        SLOT(turbo_tokenizer_vtbl, attr),   SLOT(turbo_tokenizer_vtbl, name),
        SLOT(turbo_tokenizer_vtbl, find),
    };
    const turbo_tokenizer_vtbl *const *v = p->desc.tokenizers;
    for (; v && *v; v++) {
        turbo_tokenizer_vtbl *to = &p->tokenizers[p->n_tokenizers];
        if (p->n_tokenizers == TURBOD_MAX_VTBLS)
            return turbod_err(err, TURBO_EABI, "%s offers more than %d tokenizers", p->path,
                              TURBOD_MAX_VTBLS);
        turbo_status st = copy_table(p->path, "tokenizer", *v, to, sizeof *to,
                                     END_OF(turbo_tokenizer_vtbl, find), err);
        if (!st)
            st = check_slots(p->path, "tokenizer", to, to->id, slots,
                             sizeof slots / sizeof slots[0], err);
        if (st)
            return st;
        p->n_tokenizers++;
    }
    return TURBO_OK;
}

static turbo_status copy_samplers(turbod_plugin *p, turbo_err *err)
{
    static const slot slots[] = {
        SLOT(turbo_sampler_vtbl, open),        SLOT(turbo_sampler_vtbl, close),
        SLOT(turbo_sampler_vtbl, state_bytes), SLOT(turbo_sampler_vtbl, begin),
        SLOT(turbo_sampler_vtbl, sample),      SLOT(turbo_sampler_vtbl, accept),
    };
    const turbo_sampler_vtbl *const *v = p->desc.samplers;
    for (; v && *v; v++) {
        turbo_sampler_vtbl *to = &p->samplers[p->n_samplers];
        if (p->n_samplers == TURBOD_MAX_VTBLS)
            return turbod_err(err, TURBO_EABI, "%s offers more than %d samplers", p->path,
                              TURBOD_MAX_VTBLS);
        turbo_status st = copy_table(p->path, "sampler", *v, to, sizeof *to,
                                     END_OF(turbo_sampler_vtbl, accept), err);
        if (!st)
            st = check_slots(p->path, "sampler", to, to->id, slots, sizeof slots / sizeof slots[0],
                             err);
        if (st)
            return st;
        p->n_samplers++;
    }
    return TURBO_OK;
}

static turbo_status check_descriptor(turbod_plugin *p, const turbo_plugin *d, turbo_err *err)
{
    if (!d)
        return turbod_err(err, TURBO_EABI, "%s declined this host (ABI %d.%d)", p->path,
                          TURBO_ABI_MAJOR, TURBO_ABI_MINOR);
    if (d->magic != TURBO_PLUGIN_MAGIC)
        return turbod_err(err, TURBO_EABI, "%s has the magic 0x%08x; 0x%08x is needed", p->path,
                          d->magic, TURBO_PLUGIN_MAGIC);
    if (d->abi_major != TURBO_ABI_MAJOR)
        return turbod_err(err, TURBO_EABI,
                          "%s was built for ABI %u.%u; this host has %d.%d: rebuild it", p->path,
                          d->abi_major, d->abi_minor, TURBO_ABI_MAJOR, TURBO_ABI_MINOR);
    if (d->min_minor > TURBO_ABI_MINOR)
        return turbod_err(err, TURBO_EABI, "%s needs ABI %u.%u or later; this host has %d.%d",
                          p->path, d->abi_major, d->min_minor, TURBO_ABI_MAJOR, TURBO_ABI_MINOR);
    uint32_t least = END_OF(turbo_plugin, samplers);
    if (d->size < least || d->size > 65536)
        return turbod_err(err, TURBO_EABI, "%s: the descriptor has size %u; at least %u are needed",
                          p->path, d->size, least);
    memcpy(&p->desc, d, d->size < sizeof p->desc ? d->size : sizeof p->desc);
    if (p->desc.needs & ~KNOWN_NEEDS)
        return turbod_err(err, TURBO_EABI, "%s needs features 0x%llx; this host offers 0x%llx",
                          p->path, (unsigned long long)p->desc.needs,
                          (unsigned long long)KNOWN_NEEDS);
    if (!good_id(p->desc.id))
        return turbod_err(err, TURBO_EABI,
                          "%s has the id \"%.40s\"; 1 to 31 of a-z, 0-9 and '-' are needed",
                          p->path, p->desc.id ? p->desc.id : "(null)");
    p->desc.version = p->desc.version ? p->desc.version : "";
    p->desc.license = p->desc.license ? p->desc.license : "";
    p->desc.build = p->desc.build ? p->desc.build : "";
    turbo_status st = copy_models(p, err);
    if (!st)
        st = copy_tokenizers(p, err);
    if (!st)
        st = copy_samplers(p, err);
    if (!st && !p->n_models && !p->n_tokenizers && !p->n_samplers && !p->desc.extension)
        st = turbod_err(err, TURBO_EABI, "%s offers nothing", p->path);
    return st;
}

turbo_status turbod_plugin_load(const char *folder, const char *name, turbod_plugin *p,
                                turbo_err *err)
{
    memset(p, 0, sizeof *p);
    int n = snprintf(p->path, sizeof p->path, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof p->path)
        return turbod_err(err, TURBO_ELIMIT, "the plugin folder's name is too long");
    /* NOFOLLOW: what is loaded lies in the folder the administrator named, not behind a link. */
    int fd = open(p->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return turbod_err(
            err, errno == ELOOP ? TURBO_EABI : TURBO_EIO,
            errno == ELOOP ? "%s is a symbolic link; copy the file into the folder (%s)" : "%s: %s",
            p->path, strerror(errno));
    turbo_status st = check_file(fd, p->path, err);
    void *so = NULL;
    if (!st) {
        so = dlopen(p->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (!so)
            st = turbod_err(err, TURBO_EABI, "%s cannot be loaded: %.150s", p->path, dlerror());
    }
    struct stat before, after;
    if (!st && (fstat(fd, &before) || lstat(p->path, &after) || before.st_ino != after.st_ino ||
                before.st_dev != after.st_dev))
        st = turbod_err(err, TURBO_EABI, "%s was exchanged while it was loaded", p->path);
    close(fd);
    if (st)
        return st;
    turbo_plugin_entry_fn entry;
    void *sym = dlsym(so, "turbo_plugin_entry");
    if (!sym)
        return turbod_err(err, TURBO_EABI, "%s does not export turbo_plugin_entry", p->path);
    memcpy(&entry, &sym, sizeof entry);
    return check_descriptor(p, entry(TURBO_HOST_ABI), err);
}
