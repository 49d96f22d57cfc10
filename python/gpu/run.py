"""Runs the checks of ``python/tests/gpu`` without pytest, then the measurements, and writes a report.

    python run.py --out FOLDER [--device cuda] [--only checks|measures] [--limit-s 280]

Each result is one line of JSON, written as soon as it is there. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "gpu"))

import checks  # noqa: E402
import measures  # noqa: E402
import report  # noqa: E402


def machine(device: Any) -> dict[str, Any]:
    """What the results depend on."""
    import os

    import torch

    import tensorcask

    found = {
        "kind": "machine",
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tensorcask": tensorcask.__version__,
        "package": str(Path(tensorcask.__file__).parent),
        "cpus": os.cpu_count(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=("checks", "measures"))
    parser.add_argument("--limit-s", type=float, default=280.0)
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script on a CPU")
    arguments = parser.parse_args()
    begin_s = time.monotonic()
    import torch

    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    # What hangs ends here, with the stacks of all threads.
    faulthandler.dump_traceback_later(arguments.limit_s + 30, exit=True)
    with open(arguments.out / "gpu.jsonl", "w") as file:

        def write(line: dict[str, Any]) -> None:
            lines.append(line)
            print(json.dumps(line), flush=True)
            file.write(json.dumps(line) + "\n")
            file.flush()
            (arguments.out / "gpu.md").write_text(report.markdown(lines))

        def left_s() -> float:
            return arguments.limit_s - (time.monotonic() - begin_s)

        write(machine(device))
        if arguments.only != "measures":
            checks.run(device, write, left_s)
        if arguments.only != "checks":
            measures.run(device, write, left_s, arguments.small)
        failed = [line for line in lines if line.get("result") == "failed"]
        write({"kind": "end", "failed": len(failed), "seconds": round(time.monotonic() - begin_s, 1)})
    faulthandler.cancel_dump_traceback_later()
    print((arguments.out / "gpu.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
