#!/usr/bin/env bash
# Collects what a GPU machine without cargo needs to test and time the CUDA layer: stripped
# release executables of the CUDA tests and benches, the specserve binary, gpu-run.sh.
#
# usage: scripts/gpu-bundle.sh DIR [TEST_OR_BENCH...]
#   DIR             is emptied first
#   TEST_OR_BENCH   names of test and bench targets; default: all whose name starts with cuda
set -euo pipefail
cd "$(dirname "$0")/.."

bundle=${1:?usage: scripts/gpu-bundle.sh DIR [TEST_OR_BENCH...]}
shift
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for path in tests/cuda* benches/cuda*; do
        name=$(basename "$path" .rs)
        [ -e "$path" ] && [[ " ${names[*]-} " != *" $name "* ]] && names+=("$name")
    done
fi

rm -rf "$bundle"
mkdir -p "$bundle/tests" "$bundle/benches"

# One call builds everything; cargo's messages name the executable of each target.
targets=(--bin specserve)
for name in "${names[@]}"; do
    if [ -e "tests/$name" ] || [ -e "tests/$name.rs" ]; then targets+=(--test "$name"); fi
    if [ -e "benches/$name.rs" ]; then targets+=(--bench "$name"); fi
done
cargo build --release --features cuda "${targets[@]}" --message-format=json-render-diagnostics |
    python3 -c '
import json, sys
folders = {"test": "tests/", "bench": "benches/", "bin": ""}
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        target = message["target"]
        print(message["executable"], folders[target["kind"][0]] + target["name"])' |
    while read -r executable place; do
        strip --strip-all -o "$bundle/$place" "$executable"
    done
cp scripts/gpu-run.sh "$bundle/"
du -sh "$bundle"
