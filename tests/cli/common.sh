# tests/cli/common.sh: for the shell tests beside it. Sets turbo, turbod, src, model, tmp.
set -u
src=$(cd "${srcdir:-.}" && pwd)
top=$(cd "${top_builddir:-.}" && pwd)
turbo=${TURBO:-$top/turbo}
turbod=${TURBOD:-$top/turbod}
model=$src/conf/models/internlm2-demo
[ -x "$turbo" ] && [ -x "$turbod" ] || { echo "SKIP: turbo and turbod are not built"; exit 77; }
tmp=$(mktemp -d)
pids=
finish() {
    for p in $pids; do kill -KILL "$p" 2> /dev/null; done
    rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 1' INT TERM
failures=0

# run WANTED_CODE WORDS COMMAND...: its exit code, and words (a grep -E pattern) in what it prints
run() {
    run_code=$1
    words=$2
    shift 2
    "$@" > "$tmp/out" 2>&1 < /dev/null
    code=$?
    if [ $code != "$run_code" ] || ! grep -Eq -- "$words" "$tmp/out"; then
        echo "FAILED: $*"
        echo "  exit code $code, wanted $run_code; wanted to see: $words"
        sed 's/^/  | /' "$tmp/out" | head -20
        failures=$((failures + 1))
    fi
}

# same WANTED COMMAND...: exactly this on standard output
same() {
    same_text=$1
    shift
    got=$("$@" 2> "$tmp/err")
    if [ "$got" != "$same_text" ]; then
        echo "FAILED: $*"
        echo "  got:    $got"
        echo "  wanted: $same_text"
        failures=$((failures + 1))
    fi
}

# begin FLAGS...: a turbod in the background; waits until it is ready; sets pid and url
begin() {
    : > "$tmp/log" # the last one's "ready" is not ours
    "$turbod" "$@" > "$tmp/log" 2>&1 < /dev/null &
    pid=$!
    pids="$pids $pid"
    i=0
    while ! grep -q ' ready in ' "$tmp/log"; do
        i=$((i + 1))
        if [ $i -gt 400 ] || ! kill -0 $pid 2> /dev/null; then
            echo "FAILED: turbod $* is not ready"
            cat "$tmp/log"
            exit 1
        fi
        sleep 0.05
    done
    url=$(sed -n 's/.* listening on \(http:[^ ]*\).*/\1/p' "$tmp/log")
}

# ended CODE: the daemon ends within 10 s with this code
ended() {
    i=0
    while kill -0 $pid 2> /dev/null && [ $i -lt 200 ]; do
        i=$((i + 1))
        sleep 0.05
    done
    [ $i -lt 200 ] || kill -KILL $pid # then the code is another one, and the tests go on
    wait $pid
    code=$?
    if [ $code != "$1" ]; then
        echo "FAILED: turbod ended with $code, wanted $1"
        cat "$tmp/log"
        failures=$((failures + 1))
    fi
}

logged() {
    grep -Eq -- "$1" "$tmp/log" || {
        echo "FAILED: not in the log: $1"
        cat "$tmp/log"
        failures=$((failures + 1))
    }
}

result() {
    [ $failures = 0 ] || { echo "$failures failures"; exit 1; }
    echo ok
}
