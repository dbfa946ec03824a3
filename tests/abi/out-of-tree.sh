#!/bin/sh
# tests/abi/out-of-tree.sh: a plugin as its author sees it. Installs turbod into a temporary root, builds the
# example plugin and fresh `turbo plugin new` projects with nothing but pkg-config, and runs the conformance
# tests of the installed `turbo` on them. The new model is served, and computes what llama computes.
set -eu
srcdir=${srcdir:-.}
top_builddir=${top_builddir:-.}
[ -f "$top_builddir/Makefile" ] || { echo "SKIP: no configured build in $top_builddir"; exit 77; }
command -v pkg-config > /dev/null || { echo "SKIP: pkg-config is not installed"; exit 77; }
tmp=$(mktemp -d)
pid=
finish() {
    [ -z "$pid" ] || kill "$pid" 2> /dev/null || :
    rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 1' INT TERM
umask 022
root=$tmp/root
${MAKE:-make} -s -C "$top_builddir" install DESTDIR="$root" > "$tmp/install.log" 2>&1 ||
    { tail -20 "$tmp/install.log"; exit 1; }
pc=$(find "$root" -name turbo.pc)
turbo=$(find "$root" -path '*/bin/turbo')
turbod=$(find "$root" -path '*bin/turbod')
[ -f "$pc" ] && [ -x "$turbo" ] && [ -x "$turbod" ] ||
    { echo "turbo.pc, bin/turbo or turbod is not installed"; exit 1; }
PKG_CONFIG_PATH=$(dirname "$pc")
PKG_CONFIG_SYSROOT_DIR=$root
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR
TURBO_DATA=$(dirname "$(find "$root" -type d -name plugin-new)")
export TURBO_DATA
plugins=$(dirname "$(find "$root" -name 'samp-std.so')")
flags="-O2 -std=c11 -Wall -Wextra -Werror"
[ -z "$(pkg-config --libs turbo)" ] || { echo "turbo.pc links something"; exit 1; }
failed() {
    echo "FAILED: $1"
    [ ! -f "${2:-}" ] || sed 's/^/  | /' "$2"
    exit 1
}

mkdir "$tmp/example"
cp "$srcdir"/plugins/example/Makefile "$srcdir"/plugins/example/mirostat.c "$tmp/example/"
make -s -C "$tmp/example" CC="${CC:-cc}"
"$turbo" plugin check "$tmp/example/mirostat.so"

"$turbo" plugin new my-sampler "$tmp/my-sampler" --kind sampler
make -s -C "$tmp/my-sampler" CC="${CC:-cc}" CFLAGS="$flags"
"$turbo" plugin check "$tmp/my-sampler/my-sampler.so"
if "$turbo" plugin new my-sampler "$tmp/my-sampler" --kind sampler 2> /dev/null; then
    failed "plugin new overwrites files"
fi
# The check can fail: a sampler that always picks token 0, and one that crashes.
for bad in "good:temperature 0 is greedy: temperature 0 does not give" "xcrash:crashed"; do
    name=${bad%%:*}
    ${CC:-cc} -std=c11 -fPIC -shared $(pkg-config --cflags turbo) -o "$tmp/$name.so" \
        "$srcdir/tests/abi/hostile/$name.c"
    if "$turbo" plugin check "$tmp/$name.so" > "$tmp/check" 2>&1; then
        failed "$name.so passes"
    fi
    grep -q "${bad#*:}" "$tmp/check" || failed "$name.so" "$tmp/check"
done
# Installed beside the others, it is listed, and draws when asked to; a spoiled one is listed with the reason.
cp "$tmp/my-sampler/my-sampler.so" "$plugins/"
echo "no plugin" > "$plugins/spoiled.so"
"$turbo" plugin list --plugin-path "$plugins" > "$tmp/list" 2>&1 || failed "plugin list" "$tmp/list"
grep -q my-sampler "$tmp/list" || failed "my-sampler is not listed" "$tmp/list"
grep -q 'not an ELF shared object' "$tmp/list" || failed "spoiled.so" "$tmp/list"
rm "$plugins/spoiled.so"
"$turbo" run "$srcdir/conf/models/internlm2-demo" --plugin-path "$plugins" --sampler my-sampler \
    --prompt Hello --temperature 1 --top-p 1 --top-k 0 --seed 1 --max-tokens 8 --ids > "$tmp/drawn" \
    2> "$tmp/log" || failed "a run with the sampler" "$tmp/log"
grep -q '^[0-9,]*$' "$tmp/drawn" || failed "what the sampler drew" "$tmp/drawn"

# ---- a model ------------------------------------------------------------------------------------------

command -v python3 > /dev/null || { echo "python3 is missing: the new model is not tried"; exit 77; }
my=$tmp/my-model
path=$my:$plugins
"$turbo" plugin new my-model "$my" > "$tmp/new"
grep -q 'MyModelForCausalLM' "$my/my-model.c" || failed "the name of the architecture"
make -s -C "$my" CC="${CC:-cc}" CFLAGS="$flags"
make -s -C "$my" check TURBO="$turbo" > "$tmp/check" 2>&1 || failed "plugin check" "$tmp/check"
grep -q '^10 ok, 0 failed, 0 skipped$' "$tmp/check" || failed "something was skipped" "$tmp/check"
make -s -C "$my" test-model TURBO="$turbo" PLUGINDIR="$plugins" > "$tmp/test" 2>&1 ||
    failed "make test-model" "$tmp/test"

# Greedy: the same twice, and sixteen of them.
for i in 1 2; do
    "$turbo" run "$my/tiny" --plugin-path "$path" --log-level error --raw --prompt Hello \
        --temperature 0 --max-tokens 16 --ignore-eos --ids > "$tmp/ids$i" 2> "$tmp/log" ||
        failed "turbo run" "$tmp/log"
done
cmp "$tmp/ids1" "$tmp/ids2" || failed "greedy ids differ"
grep -Eq '^([0-9]+,){15}[0-9]+$' "$tmp/ids1" || failed "not 16 ids" "$tmp/ids1"

# The same weights under the name of an architecture that llama serves: the same logits, to the bit.
(cd "$my" && python3 checkpoint.py llama LlamaForCausalLM)
cmp "$my/tiny/model.safetensors" "$my/llama/model.safetensors"
ids=256,72,101,108,108,111,0,257,3,5,200,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,255
logits() { # PLUGINS FOLDER OUT
    "$turbo" eval logits "$2" --plugin-path "$1" --log-level error --ids $ids --all > "$3" \
        2> "$tmp/log" || failed "turbo eval logits $2" "$tmp/log"
}
logits "$path" "$my/tiny" "$tmp/mine"
logits "$plugins" "$my/llama" "$tmp/theirs"
cmp "$tmp/mine" "$tmp/theirs" || failed "the logits are not those of llama"
# ... and the comparison can fail: a norm with another epsilon.
mkdir "$tmp/off"
sed 's/float eps = (float)m->cfg.eps;/float eps = 2e-5f;/' "$my/my-model.c" > "$tmp/off/off.c"
${CC:-cc} $flags -fPIC -shared $(pkg-config --cflags turbo) -o "$tmp/off/off.so" "$tmp/off/off.c" -lm
logits "$tmp/off:$plugins" "$my/tiny" "$tmp/wrong"
if cmp -s "$tmp/wrong" "$tmp/theirs"; then failed "another epsilon makes no difference"; fi

# Served.
"$turbod" --model "$my/tiny" --plugin-path "$path" --port 0 > "$tmp/log" 2>&1 < /dev/null &
pid=$!
i=0
while ! grep -q ' ready in ' "$tmp/log"; do
    i=$((i + 1))
    [ $i -le 400 ] && kill -0 $pid 2> /dev/null || failed "turbod is not ready" "$tmp/log"
    sleep 0.05
done
url=$(sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$tmp/log")
python3 - "$url" "$tmp/ids1" << 'END' || failed "a completion" "$tmp/log"
import json, sys, urllib.request
body = {"model": "tiny", "prompt": "Hello", "temperature": 0, "max_tokens": 16, "ignore_eos": True}
req = urllib.request.Request(sys.argv[1] + "/v1/completions", json.dumps(body).encode(),
                             {"Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(req, timeout=30))
ids = [int(i) for i in open(sys.argv[2]).read().split(",")]
assert all(i < 256 for i in ids), ids
want = bytes(ids).decode("utf-8", "replace")  # a token is a byte
got = answer["choices"][0]["text"]
assert answer["usage"]["completion_tokens"] == 16, answer
assert got == want, (got, want)
END
kill $pid
wait $pid || failed "turbod does not end well" "$tmp/log"
pid=
echo "ok"
