/* kernels/cuda/hostrun/fakecuda.h: what a test may ask of and plant in the fake CUDA driver.
 *
 * fakecuda.so has the functions of driver.def. Its memory is the host's, poisoned and between guard bands (from
 * 1 GiB on: zeros, and no memory until it is touched); its kernels run on the host (hostrun.h). Work is queued and
 * done when somebody waits, so whoever does not wait finds poison; a copy from pinned memory reads it then, too. A
 * copy to pageable memory waits, as the real one does. A captured stream keeps a list that a graph replays. Found
 * by tests with dlsym in the library that TURBO_CUDA_DRIVER names. One thread at a time.
 * Environment, read by cuInit: FAKECUDA_MEMORY (bytes, default 1 GiB), FAKECUDA_DEVICES, FAKECUDA_CAPABILITY
 * (90; says how much shared memory a block may have, too), FAKECUDA_SMS (4), FAKECUDA_VERSION (13000), FAKECUDA_FAIL ("cuGraphLaunch:5:700": as fakecuda_fail, once). */
#ifndef FAKECUDA_H
#define FAKECUDA_H

#include <stddef.h>

/* From the n-th call on (from 1) of a function ("cuMemAlloc_v2"; NULL: of any), counted from now, it returns
 * result; once: only the n-th. n 0: no more faults. After a result of a broken device (700 and above) every
 * call that uses the device returns it. */
typedef void (*fakecuda_fail_fn)(const char *name, long n, int result, int once);
/* How often a planted fault was returned since it was planted; what a broken device returns afterwards does not count. */
typedef long (*fakecuda_fired_fn)(void);
/* Kernels that are launched do nothing (0), or run as ever (1): for tests of what the host does around them. */
typedef void (*fakecuda_kernels_fn)(int run);
/* Calls of a function since cuInit, of all with NULL. */
typedef long (*fakecuda_calls_fn)(const char *name);
/* Launches that ran, since the library was loaded, of kernels whose names begin so; NULL: of all. */
typedef long (*fakecuda_launched_fn)(const char *name);
/* Live things: "device", "pinned" (bytes), "allocations", "streams", "events", "modules", "graphs", "contexts". */
typedef size_t (*fakecuda_live_fn)(const char *what);
/* Why the last launch or check failed, or "". */
typedef const char *(*fakecuda_why_fn)(void);

#define FAKECUDA_FAIL "fakecuda_fail"
#define FAKECUDA_FIRED "fakecuda_fired"
#define FAKECUDA_KERNELS "fakecuda_kernels"
#define FAKECUDA_CALLS "fakecuda_calls"
#define FAKECUDA_LAUNCHED "fakecuda_launched"
#define FAKECUDA_LIVE "fakecuda_live"
#define FAKECUDA_WHY "fakecuda_why"

#endif
