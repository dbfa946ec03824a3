#!/bin/sh
# tests/cuda/check-gpu.sh TEST...: runs test programs on the card of this machine, then some of them under
# compute-sanitizer where that is installed, and ends with one table. Any program that fails makes it fail; a
# tool that is absent is said to be. Needs no compiler: a copied build tree and a driver are enough.
# CHECK_GPU_SECONDS (480): what has not begun by then is not run, and the table and the exit status say so.
limit=${CHECK_GPU_SECONDS:-480}
top=${top_builddir:-.}
TURBO_CHECK_GPU=1
export TURBO_CHECK_GPU
begin=$(date +%s)
table=
bad=0

left() { echo $((limit - $(date +%s) + begin)); }

# row NAME WHAT RESULT SECONDS
row() {
    table="$table$(printf '%-28s %-10s %-8s %5s s' "$1" "$2" "$3" "$4")
"
    case $3 in pass | absent) ;; *) bad=1 ;; esac
    printf '%-28s %-10s %s\n' "$1" "$2" "$3"
}

# one NAME WHAT LOG COMMAND...
one() {
    name=$1 what=$2 log=$3
    shift 3
    t=$(left)
    if [ "$t" -lt 1 ]; then
        row "$name" "$what" no-time 0
        return
    fi
    from=$(date +%s)
    timeout -k 5 "$t" "$@" > "$log" 2>&1
    case $? in
    0) r=pass ;;
    77) r=skipped ;;
    124 | 137) r=too-long ;;
    *) r=FAIL ;;
    esac
    row "$name" "$what" $r $(($(date +%s) - from))
    [ $r = pass ] || tail -n 20 "$log"
}

for t in "$@"; do
    one "$t" run "$top/$t.gpu" "$top/$t"
done

# Small shapes under the sanitizer, which slows a kernel down by 10 to 100 times.
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
TURBO_CHECK_GPU=small
for what in memcheck racecheck initcheck synccheck; do
    for t in tests/cuda/test_rows tests/cuda/test_linear tests/cuda/test_attention tests/cuda/test_w4; do
        if [ -z "$tool" ]; then
            row "$t" $what absent 0
        else
            one "$t" $what "$top/$t.$what" "$tool" --tool $what --error-exitcode 9 \
                --target-processes all "$top/$t"
        fi
    done
done

echo
printf '%s' "$table"
[ -n "$tool" ] || echo "compute-sanitizer is not installed: nothing was checked with it"
[ $bad = 0 ] && echo "check-gpu: all passed" || echo "check-gpu: FAILED"
exit $bad
