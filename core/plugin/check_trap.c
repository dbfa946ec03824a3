/* core/plugin/check_trap.c: notices that forward() calls what a slot tagged [engine] must not: memory,
 * locks, files, output, sleep. The addresses of those functions in the plugin's own table of imports are
 * exchanged for ones that end the process; kernels and host are not touched. In a child process of
 * `turbo plugin check` that ends with the test. */
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "plugin/check_run.h"
#include "util/err.h"

/* label, symbol */
#define FORBIDDEN(X)                                                                               \
    X(malloc, "malloc")                                                                            \
    X(calloc, "calloc")                                                                            \
    X(realloc, "realloc")                                                                          \
    X(reallocarray, "reallocarray")                                                                \
    X(free, "free")                                                                                \
    X(aligned_alloc, "aligned_alloc")                                                              \
    X(posix_memalign, "posix_memalign")                                                            \
    X(strdup, "strdup")                                                                            \
    X(mmap, "mmap")                                                                                \
    X(munmap, "munmap")                                                                            \
    X(op_new, "_Znwm")                                                                             \
    X(op_new_array, "_Znam")                                                                       \
    X(op_delete, "_ZdlPv")                                                                         \
    X(op_delete_sized, "_ZdlPvm")                                                                  \
    X(op_delete_array, "_ZdaPv")                                                                   \
    X(mutex_lock, "pthread_mutex_lock")                                                            \
    X(cond_wait, "pthread_cond_wait")                                                              \
    X(create, "pthread_create")                                                                    \
    X(nanosleep, "nanosleep")                                                                      \
    X(clock_nanosleep, "clock_nanosleep")                                                          \
    X(usleep, "usleep")                                                                            \
    X(open, "open")                                                                                \
    X(fopen, "fopen")                                                                              \
    X(write, "write")                                                                              \
    X(fwrite, "fwrite")                                                                            \
    X(printf, "printf")                                                                            \
    X(fprintf, "fprintf")                                                                          \
    X(puts, "puts")

#define NUMBER(label, symbol) TRAP_##label,
enum { FORBIDDEN(NUMBER) TRAPS };

#define ENDING(label, symbol)                                                                      \
    static void trap_##label(void)                                                                 \
    {                                                                                              \
        _exit(CHECK_TRAPPED + TRAP_##label);                                                       \
    }
FORBIDDEN(ENDING)

#define ENTRY(label, symbol) {symbol, trap_##label},
static const struct {
    const char *symbol;
    void (*fn)(void);
} traps[] = {FORBIDDEN(ENTRY)};

const char *check_trap_name(int exit_code)
{
    int i = exit_code - CHECK_TRAPPED;
    return i >= 0 && i < TRAPS ? traps[i].symbol : NULL;
}

#if defined __LP64__ && defined DT_RELA

typedef struct imports {
    const char *names;
    const Elf64_Sym *symbols;
    const Elf64_Rela *tables[2]; /* of data, of the PLT */
    size_t n[2];
} imports;

/* glibc has added the load address to most of these, other C libraries have not. */
static const void *address(const struct link_map *map, Elf64_Addr at)
{
    Elf64_Addr at_least = at < map->l_addr ? map->l_addr + at : at;
    const void *p;
    memcpy(&p, &at_least, sizeof p);
    return p;
}

static imports read_imports(const struct link_map *map)
{
    imports o = {0};
    for (const Elf64_Dyn *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_STRTAB: o.names = address(map, d->d_un.d_ptr); break;
        case DT_SYMTAB: o.symbols = address(map, d->d_un.d_ptr); break;
        case DT_RELA: o.tables[0] = address(map, d->d_un.d_ptr); break;
        case DT_RELASZ: o.n[0] = d->d_un.d_val / sizeof(Elf64_Rela); break;
        case DT_JMPREL: o.tables[1] = address(map, d->d_un.d_ptr); break;
        case DT_PLTRELSZ: o.n[1] = d->d_un.d_val / sizeof(Elf64_Rela); break;
        default: break;
        }
    }
    return o;
}

static bool exchange(const struct link_map *map, const Elf64_Rela *r, void (*fn)(void))
{
    uintptr_t at = map->l_addr + r->r_offset, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = at / page * page;
    void *p, *place;
    memcpy(&p, &start, sizeof p);
    memcpy(&place, &at, sizeof place);
    if (mprotect(p, at + sizeof fn - start, PROT_READ | PROT_WRITE))
        return false;
    memcpy(place, &fn, sizeof fn);
    return true;
}

bool check_trap(const turbo_model_vtbl *v, turbo_err *why)
{
    Dl_info info;
    struct link_map *map = NULL;
    void *forward, *extra = NULL;
    memcpy(&forward, &v->forward, sizeof forward);
    if (!dladdr1(forward, &info, &extra, RTLD_DL_LINKMAP) || !extra) {
        turbod_err(why, 0, "the file that forward() lies in is not found");
        return false;
    }
    map = extra;
    imports o = read_imports(map);
    for (int t = 0; t < 2 && o.names && o.symbols; t++)
        for (size_t i = 0; o.tables[t] && i < o.n[t]; i++) {
            const Elf64_Rela *r = &o.tables[t][i];
            const Elf64_Sym *s = &o.symbols[ELF64_R_SYM(r->r_info)];
            if (!ELF64_R_SYM(r->r_info) || s->st_shndx != SHN_UNDEF || r->r_addend)
                continue;
            for (int k = 0; k < TRAPS; k++)
                if (!strcmp(o.names + s->st_name, traps[k].symbol) &&
                    !exchange(map, r, traps[k].fn)) {
                    turbod_err(why, 0, "the plugin's imports cannot be exchanged");
                    return false;
                }
        }
    return true;
}

#else

bool check_trap(const turbo_model_vtbl *v, turbo_err *why)
{
    (void)v;
    turbod_err(why, 0, "imports are exchanged on 64-bit ELF systems only");
    return false;
}

#endif
