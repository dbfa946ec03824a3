/* core/chat/template.h: messages to a prompt, by a Lua script.
 *
 * A template writes segments: special tokens by name (trusted), its own text, and text of users.
 * Only a special segment ever becomes a control token. Everything between two special tokens is
 * encoded as one text, as the reference tokenizers do, so that merges across the border of template
 * and message come out the same. Load on the main thread; render and encode from any thread. */
#ifndef TURBOD_TEMPLATE_H
#define TURBOD_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "media/image.h"
#include "turbo/plugin.h"
#include "util/buf.h"

typedef struct turbod_template turbod_template;

typedef struct turbod_message {
    const char *role; /* NUL-terminated */
    const char *name; /* or NULL */
    const char *content; /* content_len bytes of valid UTF-8 */
    size_t content_len;
    turbod_image *const *images; /* [n_images] pictures that belong to it, in order */
    const size_t *image_at; /* [n_images] bytes of content before each, ascending */
    size_t n_images;
} turbod_message;

typedef struct turbod_render_opts {
    bool add_generation_prompt;
    bool continue_final_message;
    const char *today; /* "26 Jul 2024", what scripts see as opts.today; NULL: by the clock */
} turbod_render_opts;

typedef struct turbod_segment {
    size_t at, len; /* in text; of a picture len is 0 */
    bool special, image;
} turbod_segment;

typedef struct turbod_render {
    turbod_buf text;
    turbod_segment *segments; /* neighbours of text are joined */
    size_t n, cap;
    size_t n_images;
} turbod_render;

turbo_status turbod_template_load(const char *path, turbod_template **out, turbo_err *err);
void turbod_template_free(turbod_template *t); /* NULL allowed */
const char *turbod_template_name(const turbod_template *t); /* file name */
/* Name of the i-th token that ends an answer; NULL behind the last. */
const char *turbod_template_stops(const turbod_template *t, size_t i);

/* EINVAL: the script refuses the conversation by error("..."), err is its text; or the options
 * exclude each other, or pictures are not all placed. EDATA: the script is wrong. ELIMIT: it ran too long, took too much memory, or
 * the text is too long. Each call has its own Lua state. *out is filled only on success. */
turbo_status turbod_template_render(const turbod_template *t, const turbod_message *msgs, size_t n,
                                    const turbod_render_opts *opts, turbod_render *out,
                                    turbo_err *err);
void turbod_render_free(turbod_render *r);
/* White space that a special token swallows by the tokenizer's own rule (lstrip, rstrip) is left out,
 * as it is when the reference encodes the whole prompt.
 * EDATA: a special token the tokenizer does not have. continues: other tokens come before, so that no
 * text begins the document. *ids is the caller's, free(). */
turbo_status turbod_template_encode(const turbo_tokenizer_vtbl *v, const void *tok,
                                    const turbod_render *r, bool continues, int32_t **ids,
                                    size_t *n_ids, turbo_err *err);
/* The same with pictures: each becomes media->n_rows placeholders, image_at[i] is where the i-th of r
 * begins. media NULL: the model takes none, EUNSUPPORTED when there is one. */
turbo_status turbod_template_encode_media(const turbo_tokenizer_vtbl *v, const void *tok,
                                          const turbod_render *r, bool continues,
                                          const turbod_media_facts *media, size_t *image_at,
                                          int32_t **ids, size_t *n_ids, turbo_err *err);

#endif
