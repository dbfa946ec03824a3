#!/bin/sh
# tests/abi/model-faults.sh: what the author of a model gets wrong, `turbo plugin check` finds. Builds the
# model of `turbo plugin new` against this tree, as it is and with one fault at a time.
set -eu
srcdir=${srcdir:-.}
top_builddir=${top_builddir:-.}
turbo=${TURBO:-$top_builddir/turbo}
[ -x "$turbo" ] || { echo "SKIP: turbo is not built"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
umask 022
TURBO_DATA=$srcdir/scripts
export TURBO_DATA
include=$(cd "$srcdir/core/include" && pwd)
fail=0
n=0

"$turbo" plugin new good "$tmp/good" > /dev/null
# without an installed turbod: no pkg-config
make -s -C "$tmp/good" CC="${CC:-cc}" PKG_CONFIG=true \
    CFLAGS="-O1 -std=c11 -Wall -Wextra -Werror -I$include"
"$turbo" plugin check "$tmp/good/good.so" > "$tmp/out" 2>&1 || { cat "$tmp/out"; exit 1; }
grep -q '^10 ok, 0 failed, 0 skipped$' "$tmp/out" || { cat "$tmp/out"; exit 1; }

# fault TEXT SED_SCRIPT: a plugin changed by the script must be refused with that text
from=$tmp/good/good.c
fault() {
    n=$((n + 1))
    sed -e "$2" "$from" > "$tmp/bad.c"
    if cmp -s "$from" "$tmp/bad.c"; then
        echo "the fault \"$2\" changes nothing"
        fail=1
        return
    fi
    ${CC:-cc} -O1 -std=gnu11 -w -fPIC -shared -I"$include" -o "$tmp/bad.so" "$tmp/bad.c" -lm
    if "$turbo" plugin check "$tmp/bad.so" > "$tmp/out" 2>&1; then
        echo "passes: $2"
        fail=1
    elif ! grep -q "FAILED .*$1" "$tmp/out"; then
        echo "wanted: $1"
        echo "fault:  $2"
        sed 's/^/  | /' "$tmp/out"
        fail=1
    fi
}
after_embed() { # a statement behind the first kernel
    echo "s/^    ops->embed(x, m->embed, b, h);/&  $1/"
}

fault 'probe claims a config whose architecture' 's/^               : 0;/               : 1;/'
fault 'probe claims a config whose architecture' 's/!strcmp(s, "GoodForCausalLM")/strstr(s, "ForCausalLM")/'
fault 'describe succeeds with n_kv that does not divide' 's/if (m->n_heads % m->n_kv)/if (0)/'
fault 'no tensor has the shape \[vocab, embed_dim\]' 's/^    out->size = size;/out->vocab++;/'
fault 'describe() says 4, 1 and 16' 's/^    out->size = size;/& out->n_kv = 1;/'
fault 'layer 1; describe() says 1 layers' 's/^    out->size = size;/& out->n_layers = 1;/'
fault 'expect names tensors of' 's/^    want(&e, "model.norm".*/& want(\&e, "model.extra", 64, 64, 0);/'
fault 'cannot be opened' 's/{"mlp.up_proj", I, E, &y->up}/{"mlp.up_proj", E, I, \&y->up}/'
fault 'a second open asks for other handles' \
    's/^    if (m->cfg.tied)/static int calls; if (calls++) h->vector(w, "model.norm", 64, \&m->norm, err);&/'
fault 'shrinks, varies or is absurd' 's/return plan(info, max_T, max_R, act_bytes).total;/return 1u << 20 >> max_T;/'
fault 'forward fails on a good batch' 's/return plan(info, max_T, max_R, act_bytes).total;/return plan(info, max_T, 0, act_bytes).total;/'
fault 'of the workspace; workspace() asked for' \
    's/return plan(info, max_T, max_R, act_bytes).total;/return plan(info, max_T, 0, act_bytes).total;/; s/at.total > b->workspace_bytes/0/'
fault 'does not lie in the workspace' 's/^    void \*h = base + at.h/static char own[65536]; void *h = own/'
fault 'outside the workspace' "$(after_embed 'base[b->workspace_bytes + 8] = 1;')"
fault 'outside the workspace' "$(after_embed 'base[-8] = 1;')"
fault 'outside the logits' "$(after_embed 'logits[(int64_t)R * i->vocab] = 0;')"
fault 'arrays of the batch' "$(after_embed '((int32_t *)b->positions)[0] = 1;')"
fault 'left unwritten' 's/ops->logits(x, m->head, d_rows, R, logits)/if (R > 1) ops->logits(x, m->head, d_rows, R - 1, logits)/'
fault 'differs from the same token computed alone' "$(after_embed '((float *)h)[0] += (float)T;')"
fault 'differs from the same token computed alone' "$(after_embed 'static int step; ((float *)h)[0] += (float)step++;')"
fault '3 rows chosen by row_index: row 0 differs' \
    's/^    ops->gather(x, h.*/static const int32_t first[] = {0,1,2,3,4,5,6,7,8};&/; s/b->row_index/first/'
fault 'describe succeeds with a bos id outside' 's/if (m->bos >= m->vocab)/if (0)/'
fault 'describe succeeds with an eos id outside' 's/-1, 0, m->vocab - 1, &id, err/-1, 0, 1 << 20, \&id, err/'
fault 'gather: 0 rows' 's/^    if (!R) .*/if (0)/'
fault 'workspace full of NaN\|not finite' 's/\*delta = NULL;/*delta = base + at.o;/'
fault 'attention: q and out overlap' 's/ops->attention(x, &attn, b, q, o)/ops->attention(x, \&attn, b, q, q)/'
fault 'layer 0 is stored twice' 's/attn.layer = l;/attn.layer = 0;/'
fault 'the keys of layer 0 are not stored' 's/^        ops->qkv_rope_store.*//'
fault 'turbo_attn.size is 0' 's/\.size = sizeof attn,/.size = 0,/'
fault 'w has 64 numbers, E is 63' 's/E = i->embed_dim;/E = i->embed_dim - 1;/'
fault 'without TURBO_LINEAR_TABLE' 's/TURBO_LINEAR_TABLE/0/'
fault 'the same whatever the token' "$(after_embed 'for (int k = 0; k < T * E; k++) ((float *)h)[k] = 1;'); s/\.rope = m->rope,//"
fault 'it calls malloc()' "$(after_embed 'void *volatile p2 = malloc(8); free(p2);')"
fault 'it calls free()' "$(after_embed 'void *volatile p2 = NULL; free(p2);')"
fault 'it calls puts()' "$(after_embed 'puts("step");')"
fault 'it calls nanosleep()' 's/#include <math.h>/& \n#include <time.h>/; s/^    ops->embed.*/& nanosleep(\&(struct timespec){0, 1}, NULL);/'
fault 'crashed with signal' "$(after_embed '*(volatile int *)NULL = 1;')"

# The same with experts, norms of heads and a gated sum, which it has no use for.
cat > "$tmp/experts.sed" << 'END'
s/^#define MAX_NAME 128/&\
#define EXPERTS {.size = sizeof(turbo_moe), .n_experts = 4, .n_chosen = 2, .inner = m->mlp_dim, .width = m->embed_dim}/
s/^    const turbo_linear \*qkv, \*o, \*gate, \*up, \*down;/    const turbo_linear *qkv, *o, *router;\
    const turbo_experts *experts;\
    const turbo_vector *head;/
s/^    want(e, part_name(name, l, "mlp.gate_proj"), I, E, 0);/    want(e, part_name(name, l, "mlp.gate"), 4, E, 0);\
    want(e, part_name(name, l, "head"), m->head_dim, 0, 0);\
    for (int i = 0; i < 12; i++) {\
        char one[32];\
        snprintf(one, sizeof one, "mlp.%d.%c", i \/ 3, "gud"[i % 3]);\
        want(e, part_name(name, l, one), i % 3 < 2 ? I : E, i % 3 < 2 ? E : I, 0);\
    }/
/want(e, part_name(name, l, "mlp.up_proj"/d
/want(e, part_name(name, l, "mlp.down_proj"/d
s/{"mlp.gate_proj", I, E, &y->gate}/{"mlp.gate", 4, E, \&y->router}/
/{"mlp.up_proj", I, E/d
/{"mlp.down_proj", E, I/d
s/^        st = h->vector(w, part_name(part, l, "input_layernorm"), E, &y->attn_norm, err);/&\
    const turbo_moe moe = EXPERTS;\
    (void)I;\
    if (!st)\
        st = h->vector(w, part_name(part, l, "head"), m->head_dim, \&y->head, err);\
    if (!st)\
        st = h->experts(w, \&moe, part_name(names[0], l, "mlp.#.g"), part_name(names[1], l, "mlp.#.u"),\
                        part_name(names[2], l, "mlp.#.d"), \&y->experts, err);/
s/^    p.q = take(/    const turbo_moe moe = EXPERTS;\
    p.total += turbo_moe_scratch(\&moe, T, act_bytes) \/ 64 * 64 + 64;\
&/
s/^        ops->qkv_rope_store/        ops->head_norm(x, \&attn, y->head, y->head, eps, T, wide);\
&/
s/^        ops->gated_mlp(.*/        ops->moe(x, y->router, y->experts, n, T, wide, o);\
        ops->add_gated(x, o, n, y->mlp_norm, h, T, E);/
END
from=$tmp/experts.c
sed -f "$tmp/experts.sed" "$tmp/good/good.c" > "$from"
${CC:-cc} -O1 -std=c11 -Wall -Wextra -Werror -fPIC -shared -I"$include" -o "$tmp/experts.so" "$from" -lm
"$turbo" plugin check "$tmp/experts.so" > "$tmp/out" 2>&1 || { cat "$tmp/out"; exit 1; }
grep -q '^10 ok, 0 failed, 0 skipped$' "$tmp/out" || { cat "$tmp/out"; exit 1; }
fault 'moe: the router \[3,64\] and the experts do not fit' 's/"mlp.gate")*, 4, E/"mlp.gate"), 3, E/; s/{"mlp.gate"), 3/{"mlp.gate", 3/'
fault 'moe: scratch' 's/^    p.total += turbo_moe_scratch.*/(void)moe;/'
fault 'moe: scratch does not begin on a multiple of 64' 's/n, T, wide, o);/n, T, wide + 4, o);/'
fault 'moe: in and out overlap' 's/n, T, wide, o);/n, T, wide, n);/'
fault 'a layer of 0 experts' 's/\.size = sizeof(turbo_moe)/.size = 0/'
fault '5 of 4 experts for a token' 's/n_chosen = 2/n_chosen = 5/'
fault "one '#' for their number is needed" 's/"mlp.#.u"/"mlp.0.u"/'
fault 'mlp.4.g.weight is missing' 's/n_experts = 4/n_experts = 5/; s/{"mlp.gate", 4/{"mlp.gate", 5/; s/"mlp.gate"), 4/"mlp.gate"), 5/'
fault 'add_gated: w has 16 numbers, E is 64' 's/o, n, y->mlp_norm, h/o, n, y->head, h/'
fault 'head_norm: q has 64 numbers, k 16, a head 16' 's/attn, y->head, y->head/attn, y->mlp_norm, y->head/'
fault 'head_norm: layer 0 is stored already' 's/^        ops->head_norm.*//; s/^        ops->qkv_rope_store.*/&  ops->head_norm(x, \&attn, y->head, y->head, eps, T, wide);/'
[ $fail = 0 ] || exit 1
echo "ok: $n faults found"
