#!/bin/sh
# tests/cuda/check-gpu.sh [--only WHAT,...] [TEST...]: runs test programs on the card of this machine, then small shapes
# of them under compute-sanitizer where that is installed, and ends with one table. Any program that fails makes it
# fail; a tool that is absent is said to be. No TEST: all there are. WHAT: run (the programs themselves), memcheck,
# racecheck, initcheck, synccheck. Works in the top folder of a build tree, or of a copy of one: no compiler and no make
# are needed.
# CHECK_GPU_SECONDS (480): what has not ended by then is stopped, and the table and the exit status say so.
# CHECK_GPU_JOBS: programs beside each other; most of a program's time is its model's, on the CPU.
limit=${CHECK_GPU_SECONDS:-480}
jobs=${CHECK_GPU_JOBS:-$(nproc 2> /dev/null || echo 2)}
top=${top_builddir:-.}
here=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
top_builddir=$(cd "$top" && pwd) || exit 1
export top_builddir
: "${srcdir:=$here}" "${TURBO_SHARED:=$here/../shared}"
: "${TURBO_PLUGIN_PATH:=$(echo "$top_builddir"/plugins/*/.libs | tr ' ' ':')}"
export srcdir TURBO_SHARED TURBO_PLUGIN_PATH
begin=$(date +%s)
only=run,memcheck,racecheck,initcheck,synccheck
if [ "$1" = --only ]; then
    only=$2
    shift 2
fi
# Programs on the kernels alone run beside each other, and under the tools; those that open an engine plan with the
# memory they find free, and each has the card to itself.
kernels="tests/cuda/test_rows tests/cuda/test_linear tests/cuda/test_attention tests/cuda/test_w4 tests/cuda/test_moe
    tests/cuda/test_sample tests/cuda/test_pictures tests/cuda/test_w8a8"
engines="tests/cuda/test_far tests/cuda/test_draw tests/cuda/test_engine tests/cuda/test_engine_quant tests/cuda/test_sources
    tests/cuda/test_experts tests/cuda/test_llava tests/cuda/test_swap tests/cuda/test_engine_w8a8 tests/cuda/test_forward
    tests/cuda/test_taken"
wanted=$(echo "${*:-$kernels $engines}" | sed 's/\.exe//g')
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
n=0

# row NAME WHAT RESULT SECONDS: of job n.
row() {
    printf '%-28s %-10s %-8s %5s s\n' "$@" > "$out/$(printf %03d $n).row"
    printf '%-28s %-10s %-8s %5s s\n' "$@"
}

# job NAME WHAT COMMAND...: in the background, its row and its output into files of its own.
job() {
    n=$((n + 1))
    (
        log=$out/$n.log name=$1 what=$2
        shift 2
        from=$(date +%s)
        left=$((limit - from + begin))
        r=no-time
        if [ $left -ge 1 ]; then
            timeout -k 5 $left "$@" > "$log" 2>&1
            case $? in
            0) r=pass ;;
            77) r=skipped ;;
            124 | 137) r=too-long ;;
            *) r=FAIL ;;
            esac
        fi
        row "$name" "$what" $r $(($(date +%s) - from))
        [ $r = pass ] || [ $r = no-time ] || tail -n 20 "$log"
    ) &
    running=$((running + 1))
    if [ $running -ge "$jobs" ]; then
        settle
    fi
}
settle() {
    wait
    running=0
}

program() { # of a build tree, where libtool may have put it aside
    aside=$top_builddir/${1%/*}/.libs/${1##*/}
    [ -x "$aside" ] && echo "$aside" || echo "$top_builddir/$1"
}

has() { case " $(echo $1 | tr ',' ' ') " in *" $2 "*) return 0 ;; esac; return 1; }

running=0
TURBO_CHECK_GPU=1
export TURBO_CHECK_GPU
for t in $wanted; do
    has "$only" run && has "$kernels" "$t" && job "$t" run "$(program "$t")"
done
settle
if ls "$out"/*.row > /dev/null 2>&1 && ! grep -qv ' skipped ' "$out"/*.row; then
    echo "check-gpu: FAILED, nothing was checked: no CUDA driver or card here"
    exit 1
fi
for t in $wanted; do
    if has "$only" run && ! has "$kernels" "$t"; then
        job "$t" run "$(program "$t")"
        settle
    fi
done

# Small shapes under the sanitizer, which slows a kernel down by 10 to 100 times.
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
TURBO_CHECK_GPU=small
for what in memcheck racecheck initcheck synccheck; do
    for t in $wanted; do
        if ! has "$only" $what || ! has "$kernels" "$t"; then
            continue
        elif [ -z "$tool" ]; then
            n=$((n + 1))
            row "$t" $what absent 0
        else
            job "$t" $what "$tool" --tool $what --error-exitcode 9 --target-processes all "$(program "$t")"
        fi
    done
done
settle

echo
[ $n -gt 0 ] || { echo "check-gpu: nothing to run"; exit 1; }
cat "$out"/*.row
[ -n "$tool" ] || echo "compute-sanitizer is not installed: nothing was checked with it"
if grep -qvE ' (pass|absent) ' "$out"/*.row; then
    echo "check-gpu: FAILED"
    exit 1
fi
echo "check-gpu: all passed, $(($(date +%s) - begin)) s"
