#!/bin/sh
# tests/cli/checksrc.sh: the source checker checks itself, then this source tree.
set -eu
srcdir=${srcdir:-.}
"$srcdir/scripts/checksrc" --self-test
"$srcdir/scripts/checksrc" "$srcdir"
echo ok
