/* core/weights/guard.h: what a process that maps models and writes a cache does at signals that would end it without
 * a word. Main thread, before others exist; the handlers run on any. Must not know: commands, the daemon. */
#ifndef TURBOD_GUARD_H
#define TURBOD_GUARD_H

/* SIGBUS for pages that a mapped file has no more: one line to stderr, and the exit code of TURBO_EIO. */
void turbod_guard_files(void);
/* SIGTERM, SIGINT and SIGHUP, where they are not ignored, end the process as before, but without leaving the
 * unfinished file in cache_dir. */
void turbod_guard_cache(void);

#endif
