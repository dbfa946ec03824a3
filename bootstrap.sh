#!/bin/sh
# bootstrap.sh: from a fresh clone on Debian 12 to an answer, or to a verdict.
#   ./bootstrap.sh demo    installs what is missing, builds, starts turbod, asks it three questions
#   ./bootstrap.sh check   installs what is missing, builds, runs every test; last line: the counts
# Both build in ./build. Nothing outside this folder changes but the packages that apt installs.
set -eu
top=$(cd "$(dirname "$0")" && pwd)
cd "$top"
jobs=$(nproc 2> /dev/null || echo 2)
build=$top/build
daemon=

say() { printf '%s\n' "$*"; }
die() { printf 'bootstrap.sh: %s\n' "$*" >&2; exit 1; }

# ---- packages ---------------------------------------------------------------------------------------

need_run='gcc libc6-dev make autoconf automake libtool pkg-config|pkgconf libmicrohttpd-dev libconfig-dev
    libcjson-dev liblua5.4-dev libcurl4-openssl-dev|libcurl4-gnutls-dev|libcurl4-nss-dev libedit-dev
    libpcre2-dev libutf8proc-dev libjpeg62-turbo-dev|libjpeg-turbo8-dev|libjpeg-dev libpng-dev'
need_check='g++ libcmocka-dev python3 python3-pytest python3-numpy clang-format git man-db
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user'

# One of several names joined by | is enough.
installed() {
    for p in $(echo "$1" | tr '|' ' '); do
        case $(dpkg-query -W -f '${Status}' "$p" 2> /dev/null || true) in
        'install ok installed') return 0 ;;
        esac
    done
    return 1
}

packages() {
    if ! command -v dpkg-query > /dev/null; then
        say "This is no Debian system: configure will name what is missing."
        return 0
    fi
    missing=
    for p in "$@"; do
        installed "$p" || missing="$missing ${p%%|*}"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get > /dev/null || die "please install:$missing"
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null ||
            die "these packages are missing and need root to install:$missing"
        sudo=sudo
    fi
    say "Installing:$missing"
    $sudo apt-get update -q || say "apt-get update failed; trying with what is known"
    # shellcheck disable=SC2086 # a list of names
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing ||
        die "apt-get could not install:$missing"
}

# ---- build ------------------------------------------------------------------------------------------

# Runs a command with its output in a log; shows the end of the log when it fails.
logged() {
    log=$1
    shift
    "$@" > "$log" 2>&1 || { tail -n 40 "$log"; die "failed: $* (all of it: $log)"; }
}

stale_configure() {
    [ -f configure ] || return 0
    [ -n "$(find configure.ac Makefile.am core kernels plugins scripts conf doc tests -name '*.am' -newer \
        configure 2> /dev/null)" ] || [ configure.ac -nt configure ] || [ Makefile.am -nt configure ]
}

make_build() {
    mkdir -p "$build"
    if stale_configure; then
        say "autoreconf"
        logged "$build/autoreconf.log" autoreconf -fi
    fi
    if [ ! -f "$build/Makefile" ] || [ configure -nt "$build/Makefile" ]; then
        say "configure"
        (cd "$build" && logged "$build/configure.log" ../configure)
    fi
    say "make -j$jobs"
    logged "$build/make.log" make -C "$build" -j"$jobs"
}

# ---- demo -------------------------------------------------------------------------------------------

cleanup() {
    status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2> /dev/null || true
        wait "$daemon" 2> /dev/null || true
    fi
    exit $status
}

# Starts turbod and waits until it is ready; url is set. False when it ended, $1... are its flags.
start() {
    log=$build/turbod.log
    : > "$log" # the last one's "ready" is not ours
    "$build/turbod" --conf conf/internlm2.conf "$@" > "$log" 2>&1 &
    daemon=$!
    tries=0
    while ! grep -q ' ready in ' "$log"; do
        kill -0 "$daemon" 2> /dev/null || { daemon=; return 1; }
        tries=$((tries + 1))
        [ $tries -le 600 ] || die "turbod is not ready after 60 s; see $log"
        sleep 0.1
    done
    url=$(sed -n 's/.* listening on \(http:[^ ]*\).*/\1/p' "$log")
}

demo() {
    # shellcheck disable=SC2086
    packages $need_run
    make_build
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say "Starting build/turbod --conf conf/internlm2.conf"
    if ! start; then
        if grep -q 'in use' "$log"; then
            say "The port of conf/internlm2.conf is taken; turbod takes a free one."
            start --port 0 || { cat "$log"; die "turbod does not start"; }
        else
            cat "$log"
            die "turbod does not start"
        fi
    fi
    sed -n 's/.* \(ready in .*\)/\1/p' "$log"
    say "turbod answers at $url (log: $log)"
    for q in "Hello! Who are you?" "What is a KV cache?" "Tell me a short story."; do
        say ""
        say "you> $q"
        "$build/turbo" client "$url" --once "$q"
    done
    say ""
    if [ -t 0 ] && [ -t 1 ]; then
        trap '' INT # Ctrl-C belongs to the dialogue now
        say "Your turn. turbod stops when you leave (/quit)."
        "$build/turbo" client "$url" || true
    else
        say "Done; stopping turbod. With a terminal you could go on talking."
    fi
}

# ---- check ------------------------------------------------------------------------------------------

passed=0
failed=0
skipped=0

# Adds the totals that automake's test driver printed.
count() {
    set -- "$(sed -n 's/^# PASS: *//p' "$1" | tail -n 1)" "$(sed -n 's/^# FAIL: *//p' "$1" | tail -n 1)" \
        "$(sed -n 's/^# ERROR: *//p' "$1" | tail -n 1)" "$(sed -n 's/^# SKIP: *//p' "$1" | tail -n 1)" "$2" "$1"
    if [ -z "$1" ]; then
        tail -n 40 "$6"
        say "FAIL: $5: did not get to its tests"
        failed=$((failed + 1))
        return 0
    fi
    passed=$((passed + $1))
    failed=$((failed + $2 + $3))
    skipped=$((skipped + $4))
}

# The lines of a log that say what was not fine, and why a test was skipped.
show() {
    grep -E '^(FAIL|ERROR|SKIP|XPASS):' "$1" || true
    for t in $(sed -n 's/^\(FAIL\|ERROR\): //p' "$1"); do
        say "---- $t"
        tail -n 40 "$2/$t.log" 2> /dev/null || tail -n 40 "$2/${t%.*}.log" 2> /dev/null || true
    done
    for t in $(sed -n 's/^SKIP: //p' "$1"); do
        grep -h 'SKIP' "$2/$t.log" "$2/${t%.*}.log" 2> /dev/null | sed "s|^|$t: |" | sort -u || true
    done
}

suite() { # name, target, folder of the logs
    say "== $1"
    log=$build/$2.out
    make -C "$build" -j"$jobs" "$2" > "$log" 2>&1 || true
    show "$log" "$3"
    count "$log" "$1"
}

format() {
    say "== clang-format of changed lines"
    base=
    if command -v git > /dev/null && git rev-parse --git-dir > /dev/null 2>&1; then
        up=$(git rev-parse --abbrev-ref '@{upstream}' 2> /dev/null ||
            git rev-parse --abbrev-ref origin/HEAD 2> /dev/null || true)
        [ -z "$up" ] || base=$(git merge-base HEAD "$up" 2> /dev/null || true)
    fi
    if [ -z "$base" ]; then
        say "SKIP: no upstream branch to compare with"
        skipped=$((skipped + 1))
    elif ! command -v git-clang-format > /dev/null; then
        say "SKIP: clang-format is not installed"
        skipped=$((skipped + 1))
    elif git-clang-format --extensions c,h --diff "$base" -- core kernels plugins tests > "$build/format.diff" 2>&1 ||
        grep -Eq 'no modified files|did not modify any files' "$build/format.diff"; then
        passed=$((passed + 1))
    else
        cat "$build/format.diff"
        say "FAIL: clang-format"
        failed=$((failed + 1))
    fi
}

check() {
    # shellcheck disable=SC2086
    packages $need_run $need_check
    # One architecture: the compiler takes a minute for each more. A plain make builds all of them.
    MAKEFLAGS="${MAKEFLAGS:+$MAKEFLAGS }CUDA_ARCHS=90"
    export MAKEFLAGS
    make_build
    suite "tests" check "$build"
    suite "unit tests under AddressSanitizer and UndefinedBehaviorSanitizer" check-asan "$build/asan"
    format
    say "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ] && [ $passed != 0 ]
}

case ${1:-} in
demo) demo ;;
check) check ;;
*)
    say "usage: ./bootstrap.sh demo | check"
    exit 64
    ;;
esac
