/* core/chat/dialogue.h: a conversation and the tokens it consists of.
 *
 * A model's answer is kept as the ids it sampled. The next prompt is those ids with the new turn behind
 * them, never a second encoding of the answer's text, which may cut it into other tokens: so what is in
 * the KV cache is found again to the last token, and the model sees what it said. Where that is not
 * possible (a stop string cut the answer, a template rewrites earlier turns) the whole conversation is
 * encoded anew. One thread at a time. */
#ifndef TURBOD_DIALOGUE_H
#define TURBOD_DIALOGUE_H

#include <stdint.h>

#include "chat/template.h"

typedef struct turbod_turn {
    char *role, *name, *content; /* name may be NULL */
    size_t content_len;
    turbod_slots images; /* at: bytes of content before each */
    size_t ids_end; /* of an answer: tokens of the conversation up to its end; 0 not known */
} turbod_turn;

typedef struct turbod_dialogue {
    turbod_turn *turns;
    size_t n, cap;
    int32_t *ids; /* [n_ids] up to the end of the last answer */
    size_t n_ids, cap_ids;
    int32_t *image_at; /* where in ids each picture of its turns begins */
    size_t cap_images;
} turbod_dialogue;

/* What encodes it; all constant while in use. */
typedef struct turbod_chat_kit {
    const turbod_template *chat;
    const turbo_tokenizer_vtbl *vtbl;
    const void *tok;
    const turbod_media_facts *media; /* NULL: the model takes no pictures */
} turbod_chat_kit;

void turbod_dialogue_free(turbod_dialogue *d); /* a zeroed one is empty */
turbo_status turbod_dialogue_add(turbod_dialogue *d, const turbod_message *m, turbo_err *err);
/* Forgets turns from the n-th on. */
void turbod_dialogue_cut(turbod_dialogue *d, size_t n);
/* Makes it these messages; keeps what is known of those that are there already. */
turbo_status turbod_dialogue_set(turbod_dialogue *d, const turbod_message *msgs, size_t n,
                                 turbo_err *err);
/* The prompt for the next answer, with its pictures. *ids is the caller's, free(); so are slots. */
turbo_status turbod_dialogue_prompt(const turbod_dialogue *d, const turbod_chat_kit *kit,
                                    int32_t **ids, size_t *n_ids, turbod_slots *slots,
                                    turbo_err *err);
/* The answer to that prompt: its text, and its ids without the one that ended it; n_ids 0: the ids are
 * not what the text says. */
turbo_status turbod_dialogue_answer(turbod_dialogue *d, const int32_t *prompt, size_t n_prompt,
                                    const turbod_slots *slots, const int32_t *ids, size_t n_ids,
                                    const char *text, size_t len, turbo_err *err);

/* Pictures in all turns. */
size_t turbod_dialogue_images(const turbod_dialogue *d);
/* All but the ids as bytes, for a file, of a dialogue without pictures; out->failed when there is no
 * memory. unpack reads them strictly
 * into an empty dialogue, with ids copied: EDATA when they are not what pack wrote. */
void turbod_dialogue_pack(const turbod_dialogue *d, turbod_buf *out);
turbo_status turbod_dialogue_unpack(turbod_dialogue *d, const char *bytes, size_t n,
                                    const int32_t *ids, size_t n_ids, turbo_err *err);

#endif
