/* kernels/cuda/hostrun/fiber.h: a stack of its own for each thread of a block, and the way from the scheduler to it and
 * back; tells the address sanitizer and valgrind. Must not know blocks. */
#ifndef HOSTRUN_FIBER_H
#define HOSTRUN_FIBER_H

#include <stddef.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN 1
#endif
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_MAKE_MEM_UNDEFINED(p, n) ((void)(p))
#define VALGRIND_STACK_REGISTER(a, b) ((void)(a))
#endif

#if defined(__x86_64__)
/* Saves the registers that a call preserves, stores the stack pointer in *from and takes up `to`. */
extern "C" void hostrun_switch(void **from, void *to);
asm(".text\n.globl hostrun_switch\n.hidden hostrun_switch\n.type hostrun_switch,@function\n"
    "hostrun_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size hostrun_switch,.-hostrun_switch\n");
#else
#include <ucontext.h>
#endif

namespace hostrun
{
enum { STACK = 256 << 10 };

struct place { /* where one left off */
#if defined(__x86_64__)
    void *sp = nullptr;
#else
    ucontext_t ctx;
#endif
    void *fake = nullptr; /* of the address sanitizer */
};

struct scheduler : place {
    const void *bottom = nullptr; /* of its stack, for the sanitizer */
    size_t size = 0;
};

struct stack : place {
    char *room = nullptr;

    /* Takes a stack on which body() begins; false: no memory. */
    bool begin(void (*body)())
    {
        if (!room) {
            void *p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED)
                return false;
            room = static_cast<char *>(p);
            mprotect(p, 4096, PROT_NONE); /* an overflow ends here */
            VALGRIND_STACK_REGISTER(room, room + STACK);
        }
#ifdef ASAN
        __asan_unpoison_memory_region(room + 4096, STACK - 4096);
#endif
#if defined(__x86_64__)
        void **top = reinterpret_cast<void **>(room + STACK) - 1;
        *top = nullptr; /* body() has no caller; its stack is 8 modulo 16, as after a call */
        *--top = reinterpret_cast<void *>(body);
        for (int i = 0; i < 6; i++)
            *--top = nullptr;
        sp = top;
#else
        getcontext(&ctx);
        ctx.uc_stack.ss_sp = room + 4096;
        ctx.uc_stack.ss_size = STACK - 4096;
        ctx.uc_link = nullptr;
        makecontext(&ctx, body, 0);
#endif
        return true;
    }
    stack() = default;
    stack(const stack &) = delete;
    ~stack() /* with the library: a test opens and closes the driver more than once */
    {
        if (!room)
            return;
#ifdef ASAN
        __asan_unpoison_memory_region(room, STACK);
#endif
        munmap(room, STACK);
    }
};

inline void go(place &from, place &to)
{
#if defined(__x86_64__)
    hostrun_switch(&from.sp, to.sp);
#else
    swapcontext(&from.ctx, &to.ctx);
#endif
}

/* Comes back when the fiber goes to the scheduler. */
inline void to_fiber(scheduler &home, stack &f)
{
#ifdef ASAN
    __sanitizer_start_switch_fiber(&home.fake, f.room, STACK);
#endif
    go(home, f);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(home.fake, nullptr, nullptr);
#endif
}

/* The first thing of a body. */
inline void begun(scheduler &home)
{
    (void)home;
#ifdef ASAN
    __sanitizer_finish_switch_fiber(nullptr, &home.bottom, &home.size);
#endif
}

inline void to_scheduler(scheduler &home, stack &f, bool for_good)
{
    (void)for_good;
#ifdef ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &f.fake, home.bottom, home.size);
#endif
    go(f, home);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(f.fake, nullptr, nullptr);
#endif
}
} // namespace hostrun

#endif
