"""Packs what a machine with a GPU and without a network needs into ``.gpu/``: the wheel, and an encoder in f16.

    python python/gpu/pack.py target/wheels/tensorcask-*.whl [FOLDER_OF_ALL_MINILM_L6_V2]

The folder is made anew. Weights in f16 take half the space; the checks convert them back to f32.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 60 << 20
# `onnx` and other exports of the weights are not copied.
KEPT = (".json", ".txt")


def pack_model(source: Path, target: Path) -> None:
    """Copies an encoder with its weights as f16."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix in KEPT:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    weights = load_file(source / "model.safetensors")
    halved = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in weights.items()}
    save_file(halved, target / "model.safetensors", metadata={"format": "pt"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    models = os.environ.get("TENSORCASK_MODELS")
    default = Path(models) / "all-MiniLM-L6-v2" if models else None
    parser.add_argument("model", type=Path, nargs="?", default=default, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--target", type=Path, default=ROOT / ".gpu")
    arguments = parser.parse_args()
    target: Path = arguments.target
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    shutil.copyfile(arguments.wheel, target / arguments.wheel.name)
    if arguments.model is not None:
        pack_model(arguments.model, target / "minilm")
    len_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {len_bytes / 2**20:.1f} MiB")
    if len_bytes > LIMIT_BYTES:
        print(f"more than {LIMIT_BYTES >> 20} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
