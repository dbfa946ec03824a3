#!/bin/sh
# Failing allocations and system calls on the way of a request: each CHAOS_STRIDE-th one (19; 1 takes minutes).
# The preloaded library and a sanitizer's allocator exclude each other.
if ! "$TURBOD" --version | grep -q '^sanitizers *no$'; then
    echo "SKIP: a build with sanitizers has its own malloc"
    exit 77
fi
lib=$top_builddir/tests/chaos/.libs/faults.so
exec python3 "$srcdir/tests/chaos/faults.py" "$lib" "${CHAOS_STRIDE:-19}" "$CHAOS_SEED"
