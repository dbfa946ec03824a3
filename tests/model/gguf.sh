#!/bin/sh
# Real tiny models converted to GGUF: F32 gives the bits of the folder, other types those of the dequantised
# numbers; text, plan and chat from a file.
set -eu
models="${TURBO_SHARED:-}/data/models"
if [ ! -r "$models/stories260K/REFERENCE.json" ]; then
    echo "SKIP: no shared test data; set TURBO_SHARED to its folder"
    exit 77
fi
python3 -c 'import numpy' 2> /dev/null || { echo "SKIP: python3 with numpy is not installed"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
make="python3 $srcdir/tests/golden/gguf/make.py"
pair=$top_builddir/tests/model/gguf
python3 "$srcdir/tests/model/repack.py" "$models" "$tmp"
cp -r "$models/tinystories-656k-hf" "$tmp/tinystories-656k-llama"
chmod -R u+w "$tmp"

greedy() {
    "$TURBO" run "$1" --prompt-ids 1,40,30 --temperature 0 --max-tokens 48 --ignore-eos --ids \
        2> "$tmp/log" || { cat "$tmp/log"; exit 1; }
}

same_text() { # FOLDER FILE
    a=$(greedy "$1")
    b=$(greedy "$2")
    [ "$a" = "$b" ] || { echo "$2: $b"; echo "$1: $a"; exit 1; }
}

for layout in llama internlm2 qwen; do
    for model in stories260K tinystories-656k; do
        name=$model-$layout
        $make convert "$tmp/$name" "$tmp/$name.gguf"
        echo "$name F32: $("$pair" 0 "$tmp/$name" "$tmp/$name.gguf")"
        same_text "$tmp/$name" "$tmp/$name.gguf"
    done
done
# With its own tokenizer: text, plan, what -t says.
for layout in llama qwen; do
    name=stories260K-$layout
    for model in "$tmp/$name" "$tmp/$name.gguf"; do
        "$TURBO" run "$model" --raw --prompt "Once upon a time" --temperature 0 --max-tokens 100 \
            > "$tmp/text" 2> "$tmp/log" || { cat "$tmp/log"; exit 1; }
        grep -q Lily "$tmp/text" || { cat "$tmp/text"; exit 1; }
        "$TURBO" plan "$model" --session-len 256 --json > "$tmp/plan" 2> "$tmp/log" ||
            { cat "$tmp/log"; exit 1; }
        "$TURBOD" -t --model "$model" --session-len 256 > "$tmp/log" 2>&1 ||
            { cat "$tmp/log"; exit 1; }
        grep -q "every tensor is there" "$tmp/log" || { cat "$tmp/log"; exit 1; }
        grep -q "tok-spm, 512 tokens" "$tmp/log" || { cat "$tmp/log"; exit 1; }
        { cat "$tmp/text"; echo; grep -o '"params":[0-9]*' "$tmp/plan"
          grep -o '"bytes":{[^}]*' "$tmp/plan"; } > "$tmp/said-$(basename "$model")"
    done
    cmp "$tmp/said-$name" "$tmp/said-$name.gguf" || { cat "$tmp"/said-*; exit 1; }
    echo "$name: the same text and plan"
done
# Quantised: the bits of the dequantised numbers, where matrices are multiplied in fp32; and as they are served,
# with activations of 8 bits, within 5 % of the largest logit.
quantised() { # NAME FOLDER FILE LIMIT
    echo "$1: $("$pair" 0 "$2" "$3" exact)"
    echo "$1, as served: $("$pair" "$4" "$2" "$3")"
    greedy "$3" > "$tmp/text"
    if grep -q "were planned" "$tmp/log"; then cat "$tmp/log"; exit 1; fi
}
for type in Q8_0 Q4_0; do
    for layout in llama internlm2 qwen; do
        name=tinystories-656k-$layout
        $make convert "$tmp/$name" "$tmp/x.gguf" --type $type --plain "$tmp/plain"
        quantised "$name $type" "$tmp/plain" "$tmp/x.gguf" 0.75
    done
done
# K-quants, and several types in one matrix.
for arch in llama qwen2 internlm2; do
    $make random $arch "$tmp/x.gguf" "$tmp/random"
    quantised "$arch Q4_K Q6_K Q8_0 Q4_0" "$tmp/random" "$tmp/x.gguf" 0.2
done
# What the last file is made of is said.
"$TURBO" plan "$tmp/x.gguf" --session-len 256 > "$tmp/plan" || { cat "$tmp/plan"; exit 1; }
grep -Eq '^matrices     3 Q6_K, 5 Q4_K, 3 Q8_0, 1 Q4_0$' "$tmp/plan" || { cat "$tmp/plan"; exit 1; }
for type in F16 BF16; do
    for layout in llama internlm2 qwen; do
        name=tinystories-656k-$layout
        $make convert "$tmp/$name" "$tmp/x.gguf" --type $type --plain "$tmp/plain"
        # Sums run over the same numbers in another order, in fp32.
        echo "$name $type: $("$pair" 1e-4 "$tmp/plain" "$tmp/x.gguf")"
        same_text "$tmp/plain" "$tmp/x.gguf"
    done
done
