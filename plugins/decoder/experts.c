/* plugins/decoder/experts.c: what config.json says of experts, every key with its range. Any thread. Must not know
 * a family: keys come from its table. */
#include <stdio.h>

#include "decoder.h"

void decoder_set_sparse(decoder_config *cfg, int32_t l)
{
    cfg->sparse[l / 64] |= UINT64_C(1) << (l % 64);
}

turbo_status decoder_read_experts(const decoder_experts *e, const turbo_host *h,
                                  const turbo_config *c, decoder_config *cfg, turbo_err *err)
{
    const char *key =
        e->n_alias && !h->cfg_has(c, e->n) && h->cfg_has(c, e->n_alias) ? e->n_alias : e->n;
    int64_t n, chosen = 0, inner = 0;
    turbo_status st = h->cfg_int(c, key, e->n_default, 1, TURBO_MOE_EXPERTS, &n, err);
    if (!st)
        st = h->cfg_int(c, "num_experts_per_tok", e->chosen_default, 1, TURBO_MOE_CHOSEN, &chosen,
                        err);
    if (!st)
        st = h->cfg_int(c, e->inner, e->inner_default, 1, 1048576, &inner, err);
    if (st)
        return st;
    if (chosen > n)
        return decoder_fail(err, TURBO_EDATA,
                            "config.json: num_experts_per_tok %lld is more than %s %lld",
                            (long long)chosen, key, (long long)n);
    turbo_model_info *m = &cfg->info;
    m->n_experts = (int32_t)n;
    m->n_chosen = (int32_t)chosen;
    m->expert_dim = (int32_t)inner;
    cfg->moe = (turbo_moe){
        .size = sizeof cfg->moe,
        .n_experts = m->n_experts,
        .n_chosen = m->n_chosen,
        .inner = m->expert_dim,
        .width = m->embed_dim,
        .act = TURBO_ACT_SILU,
    };
    return TURBO_OK;
}

turbo_status decoder_read_sparse(const turbo_host *h, const turbo_config *c, decoder_config *cfg,
                                 turbo_err *err)
{
    static const char key[] = "mlp_only_layers";
    char path[48];
    int64_t step, l = 0, n = h->cfg_len(c, key);
    turbo_status st = h->cfg_int(c, "decoder_sparse_step", 1, 1, INT32_MAX, &step, err);
    if (!st && h->cfg_has(c, key) && (n < 0 || n > DECODER_MAX_LAYERS))
        st = decoder_fail(err, TURBO_EDATA, "config.json: %s is no list of at most %d layers", key,
                          DECODER_MAX_LAYERS);
    for (int32_t i = 0; i < cfg->info.n_layers && !st; i++)
        if ((i + 1) % step == 0)
            decoder_set_sparse(cfg, i);
    for (int64_t i = 0; i < n && !st; i++) {
        snprintf(path, sizeof path, "%s.%lld", key, (long long)i);
        st = h->cfg_int(c, path, -1, 0, DECODER_MAX_LAYERS - 1, &l, err);
        if (!st && l >= 0)
            cfg->sparse[l / 64] &= ~(UINT64_C(1) << (l % 64));
    }
    return st;
}
