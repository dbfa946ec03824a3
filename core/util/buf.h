/* core/util/buf.h: a growing byte buffer that is born with its maximum.
 * Any thread, one owner. After a failed append `failed` stays set, so that a writer may check once
 * at the end. The content is always NUL-terminated behind len. */
#ifndef TURBOD_BUF_H
#define TURBOD_BUF_H

#include <stdbool.h>
#include <stddef.h>

typedef struct turbod_buf {
    char *ptr;
    size_t len, cap, max;
    bool failed;
} turbod_buf;

void turbod_buf_init(turbod_buf *b, size_t max);
void turbod_buf_free(turbod_buf *b);
void turbod_buf_clear(turbod_buf *b); /* len = 0, failed = false, memory kept */
bool turbod_buf_reserve(turbod_buf *b, size_t extra);
bool turbod_buf_add(turbod_buf *b, const void *p, size_t n);
bool turbod_buf_str(turbod_buf *b, const char *s);
bool turbod_buf_printf(turbod_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The text as the inside of a JSON string: quotes not included, invalid UTF-8 as U+FFFD. */
bool turbod_buf_json(turbod_buf *b, const char *s, size_t n);

#endif
