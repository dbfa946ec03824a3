#!/bin/sh
# tests/abi/out-of-tree.sh: a plugin as its author sees it. Installs turbod into a temporary
# root, builds the example plugin and a fresh `turbo plugin new` project with nothing but pkg-
# config, and runs the conformance tests of the installed `turbo` on both.
set -eu
srcdir=${srcdir:-.}
top_builddir=${top_builddir:-.}
[ -f "$top_builddir/Makefile" ] || { echo "SKIP: no configured build in $top_builddir"; exit 77; }
command -v pkg-config > /dev/null || { echo "SKIP: pkg-config is not installed"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
umask 022
root=$tmp/root
${MAKE:-make} -s -C "$top_builddir" install DESTDIR="$root" > "$tmp/install.log" 2>&1 ||
    { tail -20 "$tmp/install.log"; exit 1; }
pc=$(find "$root" -name turbo.pc)
turbo=$(find "$root" -path '*/bin/turbo')
[ -f "$pc" ] && [ -x "$turbo" ] || { echo "turbo.pc or bin/turbo is not installed"; exit 1; }
PKG_CONFIG_PATH=$(dirname "$pc")
PKG_CONFIG_SYSROOT_DIR=$root
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR
TURBO_DATA=$(dirname "$(find "$root" -type d -name plugin-new)")
export TURBO_DATA
[ -z "$(pkg-config --libs turbo)" ] || { echo "turbo.pc links something"; exit 1; }

mkdir "$tmp/example"
cp "$srcdir"/plugins/example/Makefile "$srcdir"/plugins/example/mirostat.c "$tmp/example/"
make -s -C "$tmp/example" CC="${CC:-cc}"
"$turbo" plugin check "$tmp/example/mirostat.so"

"$turbo" plugin new my-sampler "$tmp/my-sampler"
make -s -C "$tmp/my-sampler" CC="${CC:-cc}" CFLAGS="-O2 -std=c11 -Wall -Wextra -Werror"
"$turbo" plugin check "$tmp/my-sampler/my-sampler.so"
if "$turbo" plugin new my-sampler "$tmp/my-sampler" 2> /dev/null; then
    echo "plugin new overwrites files"
    exit 1
fi
# The check can fail: a sampler that always picks token 0, and one that crashes.
for bad in "good:temperature 0 is greedy: temperature 0 does not give" "xcrash:crashed"; do
    name=${bad%%:*}
    ${CC:-cc} -std=c11 -fPIC -shared $(pkg-config --cflags turbo) -o "$tmp/$name.so" \
        "$srcdir/tests/abi/hostile/$name.c"
    if "$turbo" plugin check "$tmp/$name.so" > "$tmp/check" 2>&1; then
        echo "$name.so passes"
        exit 1
    fi
    grep -q "${bad#*:}" "$tmp/check" || { cat "$tmp/check"; exit 1; }
done
# Installed beside the others, it is listed; a spoiled one is listed with the reason.
plugins=$(dirname "$(find "$root" -name 'samp-std.so')")
cp "$tmp/my-sampler/my-sampler.so" "$plugins/"
echo "no plugin" > "$plugins/spoiled.so"
"$turbo" plugin list --plugin-path "$plugins" > "$tmp/list" 2>&1 || { cat "$tmp/list"; exit 1; }
grep -q my-sampler "$tmp/list" || { cat "$tmp/list"; exit 1; }
grep -q 'not an ELF shared object' "$tmp/list" || { cat "$tmp/list"; exit 1; }
echo "ok"
