#!/bin/sh
# kernels/cuda/bench/bench-gpu.sh: everything that is measured on a card, in one go: bench-gpu, and where python3 has torch
# and transformers, the engine beside them (tests/bench/gpu.py). A table on the way and bench-gpu.csv here. Works in the
# top folder of a build tree or of a copy of one.
# BENCH_GPU_SECONDS (530): for all of it, at least 45 % of them for the engine; what would not end by then is left
# out, and said to be.
limit=${BENCH_GPU_SECONDS:-530}
here=$(cd "$(dirname "$0")/../../.." && pwd) || exit 1
top_builddir=${top_builddir:-.}
: "${srcdir:=$here}" "${TURBO:=$top_builddir/turbo}"
: "${TURBO_PLUGIN_PATH:=$(echo "$(cd "$top_builddir" && pwd)"/plugins/*/.libs | tr ' ' ':')}"
export top_builddir srcdir TURBO TURBO_PLUGIN_PATH
begin=$(date +%s)
left() { echo $((limit - $(date +%s) + begin)); }
timeout -k 5 "$(($(left) * 55 / 100))" "$top_builddir/kernels/cuda/bench/bench-gpu" --csv bench-gpu.csv
case $? in
0) ;;
124 | 137) echo "LEFT OUT, no time: what bench-gpu prints after this" ;;
*) exit 1 ;;
esac
if command -v python3 > /dev/null && [ "$(left)" -gt 20 ]; then
    timeout -k 5 "$(left)" python3 "$here/tests/bench/gpu.py" --turbo "$TURBO" --csv bench-gpu.csv --seconds "$(($(left) - 10))"
else
    echo "LEFT OUT: the engine beside transformers: no time, or no python3"
fi
echo "bench-gpu: $(($(date +%s) - begin)) s, results in bench-gpu.csv"
