#!/bin/sh
# The demo model as GGUF files: chat by its template, its tokenizer, and what is refused when the file is cut.
set -eu
python3 -c 'import numpy' 2> /dev/null || { echo "SKIP: python3 with numpy is not installed"; exit 77; }
demo=$srcdir/conf/models/internlm2-demo
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for type in BF16 Q8_0; do
    python3 "$srcdir/tests/golden/gguf/make.py" convert "$demo" "$tmp/$type.gguf" --type $type
done
say() {
    "$TURBO" run "$1" --prompt "$2" --temperature 0 --max-tokens 60 2> "$tmp/log" ||
        { cat "$tmp/log"; exit 1; }
}
for question in "Hello, who are you?" "What is the capital of France?" "Tell me a little story."; do
    want=$(say "$demo" "$question")
    [ -n "$want" ]
    types="BF16 Q8_0"
    [ "$question" != "Tell me a little story." ] || types=BF16 # the names in a story hang by a hair
    for type in $types; do
        got=$(say "$tmp/$type.gguf" "$question")
        [ "$got" = "$want" ] || { echo "$type: $got"; echo "folder: $want"; exit 1; }
    done
done
# Repacked once, and mapped the second time.
want=$(say "$demo" "Hello, who are you?")
for i in 1 2; do
    got=$(TURBO_ENGINE_CACHE_DIR="$tmp/cache" say "$tmp/Q8_0.gguf" "Hello, who are you?")
    [ "$got" = "$want" ] || { echo "from the cache: $got"; echo "folder: $want"; exit 1; }
done
[ "$(ls "$tmp/cache" | wc -l)" = 1 ] || { ls "$tmp/cache"; exit 1; }
ids=$("$TURBO" tokenize "$demo" --trusted '<|im_start|>user x <|im_end|>')
got=$("$TURBO" tokenize "$tmp/Q8_0.gguf" --trusted '<|im_start|>user x <|im_end|>')
[ "$got" = "$ids" ] || { echo "ids $got, $ids"; exit 1; }
"$TURBOD" -t --model "$tmp/Q8_0.gguf" > "$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
grep -Eq "matrices: [0-9]+ Q8_0$" "$tmp/log" || { cat "$tmp/log"; exit 1; }
"$TURBO" doctor "$tmp/Q8_0.gguf" > "$tmp/log" 2>&1 || true
grep -q "model .*Q8_0.gguf" "$tmp/log" || { cat "$tmp/log"; exit 1; }
# Options that would change nothing, and a scale that is no number: the second byte of a block of Q8_0, wherever it lies.
refused() {
    if "$TURBO" run "$@" --prompt a > "$tmp/log" 2>&1; then
        echo "taken: $*"
        exit 1
    fi
    cat "$tmp/log"
}
refused "$tmp/Q8_0.gguf" --model-format awq | grep -q "remove model_format"
refused "$tmp/Q8_0.gguf" --quantize int4 | grep -q "quantised already; remove quantize"
refused "$demo" --model-format awq | grep -q "no matrix of the folder is quantised; remove model_format"
python3 - "$tmp/Q8_0.gguf" "$tmp/inf.gguf" << 'EOF'
import sys
bytes_ = bytearray(open(sys.argv[1], "rb").read())
bytes_[-33] = 0x7c  # the upper half of the last block's scale: 34 bytes a block, and no padding behind it
open(sys.argv[2], "wb").write(bytes_)
EOF
for more in "" --allow-nonfinite; do
    refused "$tmp/inf.gguf" $more | grep -q "a scale is NaN or infinite; the file is damaged: take it again"
done
if "$TURBOD" -t --model "$tmp/inf.gguf" > "$tmp/log" 2>&1; then cat "$tmp/log"; exit 1; fi
grep -Eq "tensor [^ ]+: a scale of row [0-9]+ is NaN or infinite" "$tmp/log" || { cat "$tmp/log"; exit 1; }
# Cut: one line that says so, from whoever opens it.
size=$(wc -c < "$tmp/Q8_0.gguf")
for part in 10 1000 100000 $((size / 2)) $((size - 100)); do
    head -c $part "$tmp/Q8_0.gguf" > "$tmp/cut.gguf"
    if "$TURBOD" -t --model "$tmp/cut.gguf" > "$tmp/log" 2>&1; then
        echo "$part bytes are taken"
        exit 1
    fi
    grep -q "cut.gguf" "$tmp/log" || { cat "$tmp/log"; exit 1; }
done
echo "ok: the answers of the folder from two files; five cut files refused"
