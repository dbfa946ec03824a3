/* core/sched/holding.h: what a request holds of the KV cache: finding cached text, telling others what is
 * being computed, and giving everything back in a way that it can be found again. Engine thread, except
 * turbod_holding_name, which runs when a request is made. */
#ifndef TURBOD_HOLDING_H
#define TURBOD_HOLDING_H

#include "sched/state.h"

/* Names the prompt's blocks; keys[0] is there. */
void turbod_holding_name(turbod_request *r, const turbok_kv_pool *p);
/* Takes what is cached of the known tokens but the last one, whose logits are wanted; sets computed.
 * Returns how much more will be there when others have computed what they announced. */
int32_t turbod_holding_find(turbod_request *r, turbok_kv_pool *p);
/* The request is about to compute the rest of its prompt. */
void turbod_holding_announce(turbod_request *r, turbok_kv_pool *p);
/* Its first n tokens are computed, more than before. */
void turbod_holding_advance(turbod_request *r, turbok_kv_pool *p, int32_t n);
/* Gives all blocks of the pool back; what was computed stays cached as long as there is room. */
void turbod_holding_release(turbod_request *r, turbok_kv_pool *p);
/* Before it: copies the KV of what is computed into the swap space. False: there is no room there. */
bool turbod_holding_keep(turbod_request *r, turbok_kv_pool *p);
/* After find, and when the table has room for all known tokens: fetches what was kept and not found. Returns the
 * number of blocks. */
int32_t turbod_holding_fetch(turbod_request *r, turbok_kv_pool *p);
/* What was kept is not needed any more. */
void turbod_holding_forget(turbod_request *r, turbok_kv_pool *p);
/* Nobody may find what this request computed: its numbers were not finite. */
void turbod_holding_taint(turbod_request *r, turbok_kv_pool *p);

#endif
