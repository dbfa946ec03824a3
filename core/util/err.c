/* core/util/err.c: the one place that formats error texts. */
#include "util/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

turbo_status turbod_err(turbo_err *err, turbo_status status, const char *fmt, ...)
{
    if (!err)
        return status;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    if (n < 0)
        err->text[0] = '\0';
    size_t len = strlen(err->text);
    if (n >= (int)sizeof err->text) { /* cut: step back to the start of a UTF-8 sequence */
        while (len > 0 && ((unsigned char)err->text[len - 1] & 0xC0) == 0x80)
            len--;
        if (len > 0 && ((unsigned char)err->text[len - 1] & 0x80))
            len--;
        err->text[len] = '\0';
    }
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)err->text[i] < 0x20 || err->text[i] == 0x7f)
            err->text[i] = '?';
    return status;
}

turbo_status turbod_err_of(turbo_err *err, turbo_status status, const char *what)
{
    if (!status || !err)
        return status;
    turbo_err inner = *err;
    return turbod_err(err, status, "%s: %s", what, inner.text);
}

const char *turbod_status_name(turbo_status s)
{
    static const char *const names[] = {
        "OK",    "EINVAL", "ENOMEM",     "EUNSUPPORTED", "EDATA",     "ENOENT",
        "EIO",   "ELIMIT", "EABI",       "ECANCELLED",   "EBUSY",     "EINTERNAL",
    };
    int i = s <= 0 ? -s : 0;
    return i < (int)(sizeof names / sizeof names[0]) ? names[i] : "E?";
}

int turbod_exit_code(turbo_status s)
{
    switch (s) {
    case TURBO_OK: return 0;
    case TURBO_EINVAL: return 78;
    case TURBO_ENOMEM: return 71;
    case TURBO_EUNSUPPORTED: return 65;
    case TURBO_EDATA: return 65;
    case TURBO_ENOENT: return 66;
    case TURBO_EIO: return 74;
    case TURBO_ELIMIT: return 65;
    case TURBO_EABI: return 78;
    default: return 75;
    }
}
