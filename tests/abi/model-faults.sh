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
fault() {
    n=$((n + 1))
    sed -e "$2" "$tmp/good/good.c" > "$tmp/bad.c"
    if cmp -s "$tmp/good/good.c" "$tmp/bad.c"; then
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
[ $fail = 0 ] || exit 1
echo "ok: $n faults found"
