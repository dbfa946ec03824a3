#!/bin/sh
# tests/kern/arm.sh: the kernel tests on 64-bit ARM, whatever this machine is: compiled without a warning by a cross
# compiler, and run in an emulator of a CPU with the dot product instruction and of one without.
set -eu
if [ "$(uname -m)" = aarch64 ]; then
    echo "SKIP: this machine is 64-bit ARM itself: its kernel tests are the others"
    exit 77
fi
if [ -z "${ARM_CC:-}" ] || [ -z "${ARM_RUN:-}" ]; then
    echo "SKIP: the kernels for 64-bit ARM are not tested: install gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user," \
        "then run configure again"
    exit 77
fi
cd "$top_builddir"
# Not a part of the make that runs this test: no jobs of it are to be had here.
MAKEFLAGS= MFLAGS= "$MAKE" -s arm-programs ARM_PROGRAMS="$ARM_PROGRAMS"

run() { # CPU, what its primitives are called, program...
    cpu=$1
    name=$2
    shift 2
    for p in "$@"; do
        echo "== $(basename "$p") on $cpu"
        "$ARM_RUN" -cpu "$cpu" "$p" > "$tmp" || { tail -n 5 "$tmp"; exit 1; }
        case $p in */test_prim)
            grep -qx "primitives: $name" "$tmp" || { cat "$tmp"; echo "not run: $name"; exit 1; } ;;
        esac
    done
}
tmp=$(mktemp)
trap 'rm -f "$tmp"' EXIT INT TERM
# shellcheck disable=SC2086 # names of programs hold no blanks
run neoverse-n1 'neon dotprod' $ARM_PROGRAMS
# The other CPU differs in what multiplies quantised matrices.
run cortex-a53 neon tests/kern/arm/test_prim tests/kern/arm/test_grid
