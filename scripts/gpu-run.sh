#!/usr/bin/env bash
# Runs a bundle made by gpu-bundle.sh on a GPU machine: all CUDA tests, then all benches, then
# one line per program. Run it from the bundle's folder.
#
# usage: bash gpu-run.sh [LOG_DIR] [tests|benches|sanitize|all]
#   sanitize   runs the tests under compute-sanitizer, memcheck and racecheck; slow
# Fails when any test failed; benches run all the same.
set -uo pipefail
cd "$(dirname "$0")"

logs=${1:-logs}
what=${2:-all}
mkdir -p "$logs"
summary=$logs/summary.txt
: >"$summary"
failed=0

note() { # NAME STATUS SECONDS
    printf '%-28s %-8s %4d s\n' "$1" "$2" "$3" | tee -a "$summary"
}

run() { # NAME LOG COMMAND...
    local name=$1 log=$2 start=$SECONDS status=ok
    shift 2
    "$@" >"$log" 2>&1 || { status=FAILED; failed=1; }
    note "$name" "$status" $((SECONDS - start))
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$logs/gpu.txt"

if [ "$what" = tests ] || [ "$what" = all ]; then
    for program in tests/*; do
        name=$(basename "$program")
        run "test $name" "$logs/test-$name.log" "$program" --ignored --test-threads=4
        grep -E '^test |panicked|test result' "$logs/test-$name.log"
    done
fi

if [ "$what" = sanitize ]; then
    for tool in memcheck racecheck; do
        for program in tests/*; do
            name=$(basename "$program")
            SPECSERVE_TEST_SMALL=1 run "$tool $name" "$logs/$tool-$name.log" \
                compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" --ignored --test-threads=1
            tail -n 4 "$logs/$tool-$name.log"
        done
    done
fi

if [ "$what" = benches ] || [ "$what" = all ]; then
    for program in benches/*; do
        name=$(basename "$program")
        run "bench $name" "$logs/bench-$name.md" "$program" --bench
        cat "$logs/bench-$name.md"
    done
fi

echo
cat "$summary"
exit "$failed"
