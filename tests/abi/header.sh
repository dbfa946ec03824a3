#!/bin/sh
# tests/abi/header.sh: turbo/plugin.h alone, as C11 and C++17, without padding; every size, offset and
# declaration as plugin-MAJOR.MINOR.offsets of its own version has them, and every offset and declaration
# of every earlier minor still the same. A new field is written down by
#   UPDATE=1 tests/abi/header.sh
# which refuses to change or drop a line that is already there.
set -eu
srcdir=${srcdir:-.}
cc=${CC:-cc}
cxx=${CXX:-c++}
number() { sed -n "s/^#define TURBO_ABI_$1 \([0-9]*\)\$/\1/p" "$srcdir/core/include/turbo/plugin.h"; }
major=$(number MAJOR)
golden=$srcdir/tests/abi/plugin-$major.$(number MINOR).offsets
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
flags="-Wall -Wextra -Wpadded -Wpedantic -Werror -I$srcdir/core/include"

cat > "$tmp/use.c" << 'END'
#include "turbo/plugin.h"
int use(void);
int use(void) { return TURBO_OK; }
END
$cc -std=c11 $flags -c -o "$tmp/c.o" "$tmp/use.c"
if command -v "${cxx%% *}" > /dev/null; then
    $cxx -std=c++17 $flags -x c++ -c -o "$tmp/cc.o" "$tmp/use.c"
else
    echo "no C++ compiler: the header was compiled as C only"
fi
awk -f "$srcdir/tests/abi/fields.awk" "$srcdir/core/include/turbo/plugin.h" > "$tmp/offsets.h"
$cc -std=c11 -Wall -Wextra -Werror -I"$srcdir/core/include" -I"$tmp" -o "$tmp/offsets" \
    "$srcdir/tests/abi/offsets.c"
"$tmp/offsets" > "$tmp/now"
structs=$(grep -c '^typedef struct .*{$' "$srcdir/core/include/turbo/plugin.h")
found=$(grep -c ' size [0-9]*$' "$tmp/now")
[ "$structs" = "$found" ] || { echo "$structs structs, fields.awk found $found"; exit 1; }
# Lines with an offset are promises; the size of a struct may grow with its fields.
minor=0
while [ "$minor" -lt "$(number MINOR)" ]; do
    if grep ' offset ' "$srcdir/tests/abi/plugin-$major.$minor.offsets" | grep -Fvxf "$tmp/now"; then
        echo "the lines above, of ABI $major.$minor, have changed"
        exit 1
    fi
    minor=$((minor + 1))
done
if [ "${UPDATE:-}" ]; then
    if grep ' offset ' "$golden" 2> /dev/null | grep -Fvxf "$tmp/now"; then
        echo "refused: see above"
        exit 1
    fi
    cp "$tmp/now" "$golden"
fi
diff -u "$golden" "$tmp/now" || { echo "the ABI differs from $golden"; exit 1; }
# The test can fail: a field put first must be seen.
mkdir "$tmp/turbo"
sed 's/^typedef struct turbo_attn {/&\n    uint64_t intruder;/' \
    "$srcdir/core/include/turbo/plugin.h" > "$tmp/turbo/plugin.h"
awk -f "$srcdir/tests/abi/fields.awk" "$tmp/turbo/plugin.h" > "$tmp/offsets.h"
$cc -std=c11 -I"$tmp" -o "$tmp/offsets" "$srcdir/tests/abi/offsets.c"
"$tmp/offsets" > "$tmp/then"
if diff -q "$golden" "$tmp/then" > /dev/null; then echo "an inserted field goes unseen"; exit 1; fi
if ! grep ' offset ' "$srcdir/tests/abi/plugin-1.0.offsets" | grep -Fvxqf "$tmp/then"; then
    echo "a moved field of 1.0 goes unseen"
    exit 1
fi
echo "ok: $structs structs, $(grep -c ' offset ' "$golden") fields"
