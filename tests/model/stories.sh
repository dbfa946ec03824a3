#!/bin/sh
# Two real tiny models, as published and in the layouts of other plugins, against their float64
# references.
set -eu
models="${TURBO_SHARED:-}/data/models"
if [ ! -r "$models/stories260K/REFERENCE.json" ]; then
    echo "SKIP: no shared test data; set TURBO_SHARED to its folder"
    exit 77
fi
command -v python3 >/dev/null || { echo "SKIP: python3 is not installed"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 "$srcdir/tests/model/repack.py" "$models" "$tmp"
"$top_builddir/tests/model/stories" "$tmp" "$models" "$srcdir/tests/golden/kv-quant"
# The text, through the program: that of the reference, from each layout.
for layout in internlm2 llama qwen; do
    "$TURBO" run "$tmp/stories260K-$layout" --prompt-ids 1 --temperature 0 --max-tokens 200 \
        --ignore-eos --json > "$tmp/$layout.json" 2> "$tmp/log" || { cat "$tmp/log"; exit 1; }
    python3 -c '
import json, sys
got, want = (json.load(open(p, encoding="utf-8")) for p in sys.argv[1:])
assert got["text"].strip() == want["greedy_text"].strip(), got["text"]
' "$tmp/$layout.json" "$models/stories260K/REFERENCE.json"
    echo "ok: stories260K-$layout: the text of the reference"
done
