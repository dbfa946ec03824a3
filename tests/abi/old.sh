#!/bin/sh
# tests/abi/old.sh: plugins built with each frozen header work on today's host: a model answers what it
# must, a sampler passes the conformance tests.
set -eu
srcdir=${srcdir:-.}
cc=${CC:-cc}
[ -x "${TURBO:-}" ] || { echo "SKIP: TURBO does not name the program"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
umask 022
samplers=${TURBO_PLUGIN_PATH:-}
mkdir "$tmp/model"
echo '{"architectures":["NullForCausalLM"],"vocab_size":1000,"max_position_embeddings":64}' \
    > "$tmp/model/config.json"
n=0
for header in "$srcdir"/tests/abi/frozen/plugin-*.h; do
    version=$(basename "$header" .h)
    at=$tmp/$version
    mkdir -p "$at/turbo" "$at/plugins"
    cp "$header" "$at/turbo/plugin.h"
    $cc -std=c11 -D_GNU_SOURCE -fPIC -shared -I"$at" -o "$at/plugins/null.so" \
        "$srcdir/plugins/null/null.c"
    $cc -std=c11 -D_GNU_SOURCE -fPIC -shared -I"$at" -o "$at/plugins/mirostat.so" \
        "$srcdir/plugins/example/mirostat.c" -lm
    for p in null mirostat; do
        "$TURBO" plugin check "$at/plugins/$p.so" > "$tmp/log" || { cat "$tmp/log"; exit 1; }
        grep -q "built for ABI ${version#plugin-}," "$tmp/log" || { cat "$tmp/log"; exit 1; }
    done
    # The token behind position p is V/4 + p mod V/2. The first null wins: the old one.
    got=$("$TURBO" run "$tmp/model" --plugin-path "$at/plugins:$samplers" --prompt-ids 7,7,7 \
        --max-tokens 4 --temperature 0 --ids 2> "$tmp/log") || { cat "$tmp/log"; exit 1; }
    got=$(echo "$got" | tr -s ' \n' ',,')
    [ "${got%,}" = 252,253,254,255 ] || { echo "$version: ids $got"; exit 1; }
    n=$((n + 1))
done
[ $n -ge 1 ] || { echo "no frozen header"; exit 1; }
echo "ok: plugins of $n frozen headers"
