/* core/engine/media.h: pictures of requests, and the rows that a model made of them.
 *
 * A picture's rows are made on the engine thread when a step first needs them, so a picture whose prompt is
 * found in the prefix cache costs nothing. They are kept by digest: the same picture in another request is
 * not computed again. The store has a size in bytes; what no request holds goes, the one used longest ago
 * first. Its rows are one piece of the device's memory, taken at the start: a step finds them where they were
 * made. A place may be given to another picture while a step on its way still reads it; the device does its work
 * in order, so that is right. Must not know: files, HTTP. */
#ifndef TURBOD_ENGINE_MEDIA_H
#define TURBOD_ENGINE_MEDIA_H

#include <stdbool.h>

#include "engine/metrics.h"
#include "media/image.h"
#include "plugin/registry.h"
#include "turbok.h"

typedef struct turbod_media turbod_media;
typedef struct turbod_features turbod_features;
struct turbod_seen;
struct turbod_sched;

/* *out stays NULL when the model takes no pictures. facts are filled from config.json, before weights. */
turbo_status turbod_media_describe(const turbod_registry *r, const turbo_model_vtbl *vtbl,
                                   const turbo_config *config, int32_t vocab,
                                   turbod_media_facts *facts, turbo_err *err);
/* model is open. most: bytes of the store. E: width of a row. Rows and workspace lie where d's ops work. */
turbo_status turbod_media_open(const turbod_registry *r, const turbo_model_vtbl *vtbl, void *model,
                               turbok_device *d, const turbod_media_facts *facts, int32_t E,
                               uint64_t most, turbod_metrics *metrics, turbod_media **out,
                               turbo_err *err);
void turbod_media_free(turbod_media *m); /* NULL allowed; nobody holds anything */
/* Before it is opened: workspace, and what a store of `most` bytes may take; 0 for a model without
 * pictures. */
uint64_t turbod_media_bytes(const turbod_media_facts *facts, uint64_t most);
/* The same of d's memory, where that is not the host's: pixels are not there. */
uint64_t turbod_media_device_bytes(const turbok_device *d, const turbod_media_facts *facts,
                                   int32_t E, uint64_t most);
/* The one of both that holds for an open store. */
uint64_t turbod_media_reserved(const turbod_media *m);

/* Room for the rows of slots [n] into seen [n]; given back by turbod_media_give. EBUSY: the pictures of other
 * requests fill the store; ELIMIT: these alone are too many. [any] */
turbo_status turbod_media_take(turbod_media *m, const turbod_slot *slots, int32_t n,
                               struct turbod_seen *seen, turbo_err *err);
/* m NULL allowed when n is 0. [any] */
void turbod_media_give(turbod_media *m, struct turbod_seen *seen, int32_t n);

const uint8_t *turbod_media_digest(const turbod_features *f); /* [32] */
/* Makes the rows that a planned step needs and that are not there. [engine] */
turbo_status turbod_media_compute(turbod_media *m, const struct turbod_sched *s, turbo_exec *x,
                                  turbo_err *err);
/* All rows of the store, [*,E] act, and which of them is the first of a picture, computed. [engine] */
const void *turbod_media_rows(const turbod_media *m);
int32_t turbod_media_first_row(const turbod_media *m, const turbod_features *f);
#endif
