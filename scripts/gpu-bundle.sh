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

# Cargo's messages name the executable that it built for each target.
build() { # KIND NAME
    cargo build --release --features cuda "--$1" "$2" --message-format=json-render-diagnostics |
        python3 -c '
import json, sys
found = None
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        found = message["executable"]
print(found or sys.exit("no executable for " + sys.argv[1]))' "$2"
}

for name in "${names[@]}"; do
    if [ -e "tests/$name" ] || [ -e "tests/$name.rs" ]; then
        strip --strip-all -o "$bundle/tests/$name" "$(build test "$name")"
    fi
    if [ -e "benches/$name.rs" ]; then
        strip --strip-all -o "$bundle/benches/$name" "$(build bench "$name")"
    fi
done
strip --strip-all -o "$bundle/specserve" "$(build bin specserve)"
cp scripts/gpu-run.sh "$bundle/"
du -sh "$bundle"
