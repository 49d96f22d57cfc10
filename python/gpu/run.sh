#!/usr/bin/env bash
# Checks and measures the package on a machine with a GPU, without a network. python/gpu/pack.py made .gpu/ before:
#
#     python/gpu/run.sh [--device cpu] [--only checks|measures]
#
# Results are written to $OUT (default: .gpu/out): gpu.jsonl, gpu.md and gpu.log.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
out="${OUT:-$root/.gpu/out}"
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT

mkdir -p "$out"
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$root"/.gpu/tensorcask-*.whl
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
[ -d "$root/.gpu/minilm" ] && export TENSORCASK_GPU_MODEL="$root/.gpu/minilm"
# The checks are run from the repository, and the package from the wheel.
cd "$root/python/gpu"
"$python" run.py --out "$out" "$@" 2>&1 | tee "$out/gpu.log"
