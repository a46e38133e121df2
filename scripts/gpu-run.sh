#!/usr/bin/env bash
# Runs a bundle made by gpu-bundle.sh on a GPU machine: all CUDA tests, then all benches, then
# one line per program. Run it from the bundle's folder.
#
# usage: bash gpu-run.sh [LOG_DIR] [tests|benches|sanitize|all]
#   sanitize   runs every test, small, under compute-sanitizer, memcheck and racecheck: each test
#              in a process of its own, several at a time. Left out: what runs NVIDIA's own kernels
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

sanitize() { # TOOL PROGRAM TEST
    local name=$1-$(basename "$2")-${3//:/-}
    SPECSERVE_TEST_SMALL=1 run "$1 $3" "$logs/$name.log" \
        compute-sanitizer --tool "$1" --error-exitcode 9 "$2" --ignored --exact "$3"
    return "$failed"
}

if [ "$what" = sanitize ]; then
    for program in tests/*; do
        for test in $("$program" --list --ignored 2>/dev/null | sed -n 's/: test$//p'); do
            for tool in memcheck racecheck; do
                # racecheck reports hazards inside cuBLASLt; the doctor measures with it.
                case $tool-$test in *doctor* | racecheck-cublaslt*) continue ;; esac
                # The executor's tests run the same kernels, and cuBLASLt's.
                [ "$tool $(basename "$program")" = "racecheck cuda_executor" ] && continue
                while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || failed=1; done
                sanitize "$tool" "$program" "$test" &
            done
        done
    done
    while [ -n "$(jobs -rp)" ]; do wait -n || failed=1; done
    grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs"/{memcheck,racecheck}-*.log | sort | uniq -c
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
