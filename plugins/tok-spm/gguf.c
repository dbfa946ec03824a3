/* plugins/tok-spm/gguf.c: the tokenizer of a GGUF file whose tokenizer.ggml.model is "llama": the pieces of a
 * SentencePiece BPE model, with what converters added to them. The file has no normaliser: those that make one
 * refuse models that need more than a blank in front. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_keys.h"
#include "spm.h"

#define FILE_NAME "the GGUF file's tokenizer"

int32_t spm_gguf_probe(const turbo_host *h, const char *folder)
{
    gguf_header g;
    turbo_err err;
    turbo_status st = gguf_header_open(h, folder, &g, &err);
    int32_t score = !st && gguf_is(gguf_find(&g, "ggml.model"), "llama") ? 50 : 0;
    free(g.bytes);
    return score;
}

/* Pieces are numbered as in SentencePiece. An id without a name fills up the vocabulary. */
static turbo_status read_pieces(spm *s, const gguf_header *g, turbo_err *err)
{
    const gguf_value *tokens = gguf_list(g, "ggml.tokens", TURBO_GGUF_STRING),
                     *scores = gguf_list(g, "ggml.scores", TURBO_GGUF_F32),
                     *types = gguf_list(g, "ggml.token_type", TURBO_GGUF_U32);
    if (!tokens || !tokens->n || tokens->n > SPM_MAX_PIECES)
        return spm_fail(err, TURBO_EDATA, FILE_NAME " has no list ggml.tokens of 1 to %d texts",
                        SPM_MAX_PIECES);
    if (!scores || scores->n != tokens->n || !types || types->n != tokens->n)
        return spm_fail(err, TURBO_EDATA,
                        FILE_NAME ": ggml.scores and ggml.token_type must be as long as "
                                  "ggml.tokens");
    s->pieces = calloc(tokens->n, sizeof *s->pieces);
    if (!s->pieces)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %llu pieces",
                        (unsigned long long)tokens->n);
    const uint8_t *at = tokens->at;
    for (uint64_t i = 0; i < tokens->n; i++, s->n++) {
        spm_piece *p = &s->pieces[i];
        uint64_t len;
        uint32_t type = gguf_bits(types, i), bits = gguf_bits(scores, i);
        if (!gguf_next(tokens, &at, &p->text, &len) || len > SPM_MAX_PIECE || type < SPM_NORMAL ||
            type > SPM_BYTE)
            return spm_fail(err, TURBO_EDATA,
                            FILE_NAME ": token %d has the type %u, or more than %d bytes", s->n,
                            type, SPM_MAX_PIECE);
        memcpy(&p->score, &bits, sizeof bits);
        p->len = (uint32_t)len;
        p->type = (uint8_t)(len ? type : SPM_ADDED);
        p->special = len && (type == SPM_CONTROL || type == SPM_UNKNOWN);
        p->added = p->special || (len && type == SPM_USER);
        if (!isfinite(p->score))
            return spm_fail(err, TURBO_EDATA, FILE_NAME ": the score of token %d is no number",
                            s->n);
    }
    s->n_file = s->n;
    return TURBO_OK;
}

/* Tokens that keys give a role never come out of ordinary text, whatever their type. */
static turbo_status read_roles(spm *s, const gguf_header *g, turbo_err *err)
{
    static const char *const keys[] = {
        "ggml.bos_token_id",       "ggml.eos_token_id",  "ggml.unknown_token_id",
        "ggml.padding_token_id",   "ggml.eot_token_id",  "ggml.eom_token_id",
        "ggml.seperator_token_id", "ggml.mask_token_id",
    };
    s->bos = s->eos = -1;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        uint32_t id;
        if (!gguf_find(g, keys[i]))
            continue;
        if (!gguf_uint(g, keys[i], (uint32_t)s->n - 1, &id))
            return spm_fail(err, TURBO_EDATA, FILE_NAME ": %s is no token of it", keys[i]);
        spm_piece *p = &s->pieces[id];
        if (p->type == SPM_BYTE)
            return spm_fail(err, TURBO_EDATA, FILE_NAME ": %s is a byte", keys[i]);
        if (i == 2) {
            s->unk = (int32_t)id;
            continue;
        }
        p->special = p->added = true;
        s->bos = i == 0 ? (int32_t)id : s->bos;
        s->eos = i == 1 ? (int32_t)id : s->eos;
    }
    if (s->pieces[s->unk].type != SPM_UNKNOWN)
        return spm_fail(err, TURBO_EDATA, FILE_NAME ": token %d is not the unknown token", s->unk);
    return TURBO_OK;
}

static turbo_status build(spm *s, const gguf_header *g, turbo_err *err)
{
    int32_t bytes = 0;
    if (!gguf_is(gguf_find(g, "ggml.model"), "llama"))
        return spm_fail(err, TURBO_EUNSUPPORTED, FILE_NAME " is no SentencePiece model");
    s->model_type = SPM_BPE;
    s->list = "tokenizer.ggml.tokens";
    s->dummy_prefix = gguf_bool(g, "ggml.add_space_prefix", true);
    s->squeeze = gguf_bool(g, "ggml.remove_extra_whitespaces", false);
    s->escape = true;
    s->surface = " \xE2\x81\x87 ";
    s->surface_len = 5;
    turbo_status st = read_pieces(s, g, err);
    if (!st)
        st = spm_bytes(s, FILE_NAME, &bytes, err);
    if (!st)
        st = read_roles(s, g, err);
    if (!st)
        st = spm_forms(s, err);
    s->byte_fallback = bytes == 256;
    s->add_bos = s->bos >= 0 && gguf_bool(g, "ggml.add_bos_token", true);
    return st;
}

turbo_status spm_gguf(spm *s, const turbo_host *h, const char *folder, turbo_err *err)
{
    gguf_header g;
    turbo_status st = gguf_header_open(h, folder, &g, err);
    s->file = g.bytes; /* pieces point into it */
    return st ? st : build(s, &g, err);
}
