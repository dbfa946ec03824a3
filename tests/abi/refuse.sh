#!/bin/sh
# tests/abi/refuse.sh: builds every spoiled plugin of hostile/ into one folder with the good
# ones, adds files that are no plugins, and compares what the registry says of each with what it
# must say.
set -eu
srcdir=${srcdir:-.}
top_builddir=${top_builddir:-.}
rows=${ROWS:-$top_builddir/tests/abi/rows}
cc=${CC:-cc}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
umask 022
dir=$tmp/plugins
mkdir "$dir" "$tmp/outside"

for c in "$srcdir"/tests/abi/hostile/*.c; do
    name=$(basename "$c" .c)
    $cc -std=c11 -O1 -fPIC -shared -I"$srcdir/core/include" -o "$dir/$name.so" "$c"
done
# Files, not code: none of these may reach the dynamic loader.
echo "I am a text file, and longer than an ELF header would be, to be sure of it." > "$dir/text.so"
: > "$dir/empty.so"
cp "$dir/good.so" "$tmp/elf"
head -c 4 "$tmp/elf" > "$dir/elf32.so"; printf '\001' >> "$dir/elf32.so"
tail -c +6 "$tmp/elf" >> "$dir/elf32.so"
head -c 5 "$tmp/elf" > "$dir/bigendian.so"; printf '\002' >> "$dir/bigendian.so"
tail -c +7 "$tmp/elf" >> "$dir/bigendian.so"
head -c 18 "$tmp/elf" > "$dir/machine.so"; printf '\010\000' >> "$dir/machine.so"
tail -c +21 "$tmp/elf" >> "$dir/machine.so"
head -c 9000 "$tmp/elf" > "$dir/cut.so"
head -c 30 "$tmp/elf" > "$dir/stump.so"
cp "$dir/good.so" "$dir/world.so"; chmod 666 "$dir/world.so"
cp "$dir/good.so" "$dir/group.so"; chmod 664 "$dir/group.so"
cp "$dir/good.so" "$tmp/outside/linked.so"; ln -s "$tmp/outside/linked.so" "$dir/link.so"
mkdir "$dir/folder.so"
echo "not looked at" > "$dir/README"
chgrp 12345 "$dir/group.so" 2>/dev/null || rm "$dir/group.so" # needs root: elsewhere not tried

"$rows" "$dir" > "$tmp/out"
fail=0
want() {
    if ! grep -Eq -- "$1" "$tmp/out"; then
        echo "missing: $1"
        fail=1
    fi
}
want '^loaded good.so: good, sampler good$'
want '^loaded frozen.so: frozen-1-0, sampler frozen$'
want '^loaded yfuture.so: future, sampler future$'
want '^loaded xcrash.so: xcrash, sampler crash$'
want '^refused magic.so: .*magic 0x12345678; 0x6f627274 is needed'
want '^refused major.so: .*built for ABI 2.2; this host has 1.2'
want '^refused minminor.so: .*needs ABI 1.77 or later; this host has 1.2'
want '^refused small.so: .*sampler table has size [0-9]+; at least [0-9]+ are needed'
want '^refused smalldesc.so: .*descriptor has size [0-9]+; at least [0-9]+ are needed'
want '^refused slot.so: .*the sampler "slot" lacks the slot accept'
want '^refused twins.so: .*two of its tables have the id "twin"'
want '^refused zdouble.so: .*the id "good" is taken by .*/good.so'
want '^refused badid.so: .*the id "Bad Id"; 1 to 31 of'
want '^refused needs.so: .*needs features 0x10000000000; this host offers 0x0'
want '^refused nothing.so: .*offers nothing'
want '^refused init.so: .*init failed: no frobnicator on this machine'
want '^refused decline.so: .*declined this host \(ABI 1.2\)'
want '^refused noentry.so: .*does not export turbo_plugin_entry'
want '^refused missing.so: .*cannot be loaded: .*nobody_defines_this'
want '^refused text.so: .*not an ELF shared object'
want '^refused empty.so: .*not an ELF shared object \(0 bytes\)'
want '^refused elf32.so: .*ELF class 1, data 1; class 2, data 1 are needed'
want '^refused bigendian.so: .*ELF class 2, data 2; class 2, data 1 are needed'
want '^refused machine.so: .*is for machine 8, type 3; [0-9]+ and 3 are needed'
want '^refused cut.so: .*truncated: 9000 bytes, its parts end at [0-9]+'
want '^refused stump.so: .*truncated: 30 bytes'
want '^refused world.so: .*writable by everyone \(mode 0666\)'
[ ! -e "$dir/group.so" ] || want '^refused group.so: .*writable by group 12345 \(mode 0664\)'
want '^refused link.so: .*symbolic link'
want '^refused folder.so: .*not a regular file'
want '^sampler good: good$'
want '^model_for: -3 no plugin runs .* FrobnicatorForCausalLM \(model_type frob\); .*: none'
n=$(ls "$dir" | grep -c '\.so$')
got=$(grep -Ec '^(loaded|refused) ' "$tmp/out")
[ "$n" = "$got" ] || { echo "$n files, $got lines"; fail=1; }

# Folders: a second one is read after the first; an unusable one fails by name.
"$rows" "$dir:$tmp/outside" > "$tmp/two"
grep -q '^refused linked.so: .*the id "good" is taken by' "$tmp/two" ||
    { echo "second folder"; fail=1; }
chmod 777 "$tmp/outside"
if "$rows" "$tmp/outside" > "$tmp/bad"; then echo "a world-writable folder is taken"; fail=1; fi
grep -q '^error plugin folder .*writable by everyone (mode 0777)' "$tmp/bad" ||
    { cat "$tmp/bad"; fail=1; }
if "$rows" "$tmp/absent" > "$tmp/bad"; then echo "an absent folder is taken"; fail=1; fi
grep -q '^error plugin folder .*absent.*No such file' "$tmp/bad" || { cat "$tmp/bad"; fail=1; }
[ $fail = 0 ] || { cat "$tmp/out"; exit 1; }
echo "ok: $n plugins judged"
