#!/bin/sh
# Two real tiny models, repacked into the InternLM2 layout, against their float64 references.
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
