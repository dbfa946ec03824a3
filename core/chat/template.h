/* core/chat/template.h: from the messages of a conversation to prompt ids, by a Lua script.
 *
 * A template is loaded once and may render on several threads at once: each call runs the script in
 * a fresh sandboxed state. What the script writes is a list of segments. Names given to
 * out:special() become special tokens; everything else, the template's own words and the users'
 * alike, is ordinary text, so that no message can forge a control token.
 * Must not know: HTTP, engine, which model is loaded. */
#ifndef TURBOD_TEMPLATE_H
#define TURBOD_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

#define TURBOD_MAX_TEMPLATE_STOPS 8
#define TURBOD_MAX_TOKEN_NAME 128 /* bytes of a special token's name */

typedef struct turbod_template turbod_template;

typedef struct turbod_message {
    const char *role;    /* NUL-terminated */
    const char *name;    /* NUL-terminated, or NULL */
    const char *content; /* content_len bytes of valid UTF-8, may hold NUL */
    size_t content_len;
} turbod_message;

typedef struct turbod_render_opts {
    bool add_generation_prompt;  /* end with the opening of an assistant turn */
    bool continue_final_message; /* leave the last message open; excludes the one above */
} turbod_render_opts;

typedef struct turbod_segment {
    const char *text; /* inside turbod_render.text */
    size_t len;
    bool trusted; /* the name of a special token, from out:special() */
    bool user;    /* from out:user(); false: the template's own text */
} turbod_segment;

/* All segments one after another: text is the prompt as people read it. */
typedef struct turbod_render {
    char *text; /* NUL-terminated behind len */
    size_t len;
    turbod_segment *segments;
    size_t n;
} turbod_render;

/* Reads, compiles and runs the script once. ENOENT, EIO: the file; EDATA: the script. [any] */
turbo_status turbod_template_load(const char *path, turbod_template **out, turbo_err *err);
void turbod_template_free(turbod_template *t); /* NULL allowed */
/* Name of the i-th token that ends an answer; NULL past the last. */
const char *turbod_template_stops(const turbod_template *t, size_t i);

/* EINVAL: the script refuses the conversation by error("..."), err is its text. EDATA: the script
 * is wrong. ELIMIT: it ran too long. ENOMEM: out of memory, the script's own cap included.
 * *out is filled only on success; turbod_render_free it. [any] */
turbo_status turbod_template_render(const turbod_template *t, const turbod_message *msgs, size_t n,
                                    const turbod_render_opts *opts, turbod_render *out,
                                    turbo_err *err);
void turbod_render_free(turbod_render *r); /* a zeroed one is allowed */

/* Ids of a rendering. Each special segment is looked up by its name (EDATA when the tokenizer has no
 * such token); the text between two specials is one chunk for the tokenizer, whoever wrote it, as
 * tokenisers of whole rendered prompts do. *ids is the caller's, free(). [any] */
turbo_status turbod_template_encode(const turbo_tokenizer_vtbl *v, const void *tok,
                                    const turbod_render *r, int32_t **ids, size_t *n_ids,
                                    turbo_err *err);

#endif
