#!/usr/bin/env bash
# Installs the parts of CUDA 13.0 that the feature `cuda` builds with into DIR (default .cuda),
# from PyPI wheels: nvcc, ptxas, headers, the static runtime, cuBLASLt. Needs no root, no GPU and
# no driver. 528 MB to download, 841 MB installed.
#
# usage: scripts/get-cuda.sh [DIR]
set -euo pipefail

dir=${1:-.cuda}
cuda=$dir/nvidia/cu13

# crt and nvvm are named because the nvcc wheel does not pin them: left out, pip takes newer
# ones, whose PTX this ptxas refuses. cccl holds <nv/target>, which cuda_bf16.h includes.
if [ ! -f "$dir/.complete" ]; then
    python3 -m pip install --quiet --disable-pip-version-check --no-compile --no-cache-dir --upgrade \
        --target "$dir" "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl,cublas]==13.0.2"
    touch "$dir/.complete"
fi

# The wheels lack what tools expect of a toolkit: lib64, lib*.so without a version, targets/.
ln -sfn lib "$cuda/lib64"
mkdir -p "$cuda/targets/x86_64-linux" "$cuda/nvvm/lib64"
ln -sfn ../../lib "$cuda/targets/x86_64-linux/lib"
ln -sfn ../../include "$cuda/targets/x86_64-linux/include"
ln -sfn ../../lib/libnvvm.so.4 "$cuda/nvvm/lib64/libnvvm.so"
for library in "$cuda"/lib/lib*.so.*; do
    ln -sfn "$(basename "$library")" "${library%%.so.*}.so"
done

"$cuda/bin/nvcc" --version | tail -n 2
echo "CUDA_HOME=$(cd "$cuda" && pwd)"
