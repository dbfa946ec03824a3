/* core/engine/service.h: what a program needs to answer requests: configuration, plugins, engine,
 * chat template and policies, with the state that /health tells.
 *
 * turbod and the subcommands of turbo build one; net/ reads it. The state is atomic: HTTP may listen
 * while the model loads. */
#ifndef TURBOD_SERVICE_H
#define TURBOD_SERVICE_H

#include <stdatomic.h>

#include "chat/dialogue.h"
#include "conf/conf.h"
#include "engine/engine.h"
#include "lua/policies.h"

enum { TURBOD_LOADING, TURBOD_READY, TURBOD_DRAINING, TURBOD_FAILED };

typedef struct turbod_service {
    const turbod_conf *conf;
    turbod_registry *registry;
    turbod_engine *engine; /* valid once state is READY */
    turbod_template *chat; /* NULL: base model, chat/completions are refused with the reason */
    turbod_policies *policies; /* by name; set once, before READY; a reload changes what it holds */
    uint64_t memory_free; /* plan as if so many bytes were free; 0: measure. Before loading */
    char name[129]; /* model name for clients */
    char chat_reason[256]; /* why chat is NULL */
    int64_t created; /* unix time of the start */
    int32_t *stop_ids; /* ids of the chat template's stop tokens, added to chat requests */
    int32_t n_stop_ids;
    /* Sampling defaults of generation_config.json (temperature, top_p, top_k, repetition_penalty). */
    turbo_sample_params defaults;
    _Atomic int state;
    _Atomic uint64_t load_done, load_total;
} turbod_service;

/* model_name, or the last part of the model folder's name. */
void turbod_service_name(const turbod_conf *conf, char name[129]);
/* Opens the registry; touches no model. */
turbo_status turbod_service_init(turbod_service *s, const turbod_conf *conf, turbo_err *err);
/* Loads the model, the template and the policies; state becomes READY or FAILED. need_chat = false
 * does not look for a template. progress may be NULL. */
turbo_status turbod_service_load(turbod_service *s, bool need_chat,
                                 void (*progress)(void *, uint64_t, uint64_t), void *ctx,
                                 turbo_err *err);
void turbod_service_close(turbod_service *s);

/* What policies of this service may ask for; once READY. */
turbod_policy_env turbod_service_policy_env(const turbod_service *s);

/* The engine's options as the configuration has them (registry and progress left to the caller). */
turbo_status turbod_service_engine_opts(const turbod_conf *c, turbod_engine_opts *o,
                                        turbo_err *err);

/* What kv_dtype and quant_policy together ask for: TURBO_*, TURBOK_KV_*, -1 the model's; EINVAL when they
 * contradict each other. */
turbo_status turbod_kv_type_of(const turbod_conf *c, int32_t *out, turbo_err *err);

/* Where plugins are looked for: the configured path, else the build tree's or the installed one. */
const char *turbod_plugin_path(const char *configured);
/* The folder of data files (scripts/): $TURBO_DATA, else the installed one, else the source tree's. */
const char *turbod_data_dir(void);

/* What a dialogue of this service is encoded with; EUNSUPPORTED when there is no template. The template
 * of the moment: a reload may exchange it for the next call. [any] */
turbo_status turbod_service_chat_kit(const turbod_service *s, turbod_chat_kit *kit, turbo_err *err);
/* Messages to prompt ids (template, then tokenizer) and the pictures in it. *ids is the caller's, free(),
 * and so are slots, which begin empty. [any] */
turbo_status turbod_service_prompt(const turbod_service *s, const turbod_message *msgs, size_t n,
                                   const turbod_render_opts *opts, int32_t **ids, size_t *n_ids,
                                   turbod_slots *slots, turbo_err *err);
/* Plain text to prompt ids, bos added when the tokenizer says so. [any] */
turbo_status turbod_service_encode(const turbod_service *s, const char *text, size_t len,
                                   bool add_bos, bool trusted, int32_t **ids, size_t *n_ids,
                                   turbo_err *err);

#endif
