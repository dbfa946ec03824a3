#!/bin/sh
# tests/cuda/cards.sh: kernels and engines on fake cards of other capabilities than 9.0, which have other kernels, less
# shared memory, or both: 8.0 (163 KiB a block), 8.9 and 12.0 (99 KiB) and 10.0 (227 KiB, but the code of 8.0). Left out is what only 9.0 has:
# test_engine, test_engine_w8a8 and test_forward count its launches.
set -u
top=${top_builddir:-.}
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
n=0

# on CAPABILITY TEST...
on() {
    card=$1
    shift
    for t in "$@"; do
        if ! FAKECUDA_CAPABILITY=$card "$top/tests/cuda/$t" > "$log" 2>&1; then
            echo "FAILED: $t on capability $card:"
            tail -n 20 "$log"
            exit 1
        fi
        n=$((n + 1))
    done
}

unset TURBO_CHECK_GPU
on 80 test_linear test_w4 test_moe test_w8a8
on 89 test_linear test_w4 test_moe test_rows test_attention test_w8a8 test_engine_quant test_experts test_llava test_swap
on 100 test_linear
on 120 test_linear test_w4 test_engine_quant
echo "$n programs on four cards"
