"""Makes the Python environment of the tests: PyTorch for the CPU, and the packages that the tests and examples use.

    python3 python_env.py FOLDER

The wheel of PyTorch on PyPI is built for CUDA. Its dependencies are 3 GB of libraries that run on a GPU only, but the
loader refuses the wheel without them. This installs the CUDA runtime and CUPTI, and stubs in place of all others:
shared libraries with the required names and functions, which end the process if they are ever called. Nothing calls
them without a GPU.

The environment is made under another name and renamed when it is complete, so a later run does not use an interrupted
one. It is made again when the packages below change. Needs Python 3.10 or newer with pip and venv, gcc and readelf.
"""

import collections
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TORCH = ["torch==2.13.0"]
# The versions that PyTorch asks for. `libtorch_cpu.so` requires both, with or without a GPU.
CUDA = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
PACKAGES = [
    "numpy",
    "pyarrow",
    "polars",
    "duckdb",
    "pandas",
    "safetensors",
    "scikit-learn",
    "sentence-transformers",
    "transformers",
    "datasets",
    "lightning",
    "maturin>=1.9.4",
    "mypy",
    "pytest",
    "pytest-timeout",
]
# To be raised when this script makes another environment of the same packages.
REVISION = 1

# What is made, and from which Python. The complete environment has it in the file `made-of`.
MADE_OF = "\n".join([f"revision {REVISION}, Python {sys.version.split()[0]}", *TORCH, *CUDA, *PACKAGES]) + "\n"


STUB_HEAD = """
#include <stdio.h>
#include <stdlib.h>
static void stop(const char *name) {
  fprintf(stderr, "%s: this environment has a stub in place of this CUDA library (see scripts/python_env.py)\\n", name);
  abort();
}
"""


def run(*command):
    """Runs a command; its output is shown only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\nfailed with exit code {done.returncode}")
    return done.stdout


def pip(python, *requirements):
    """Installs packages into the environment of `python`."""
    print("installing", *requirements, file=sys.stderr, flush=True)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *requirements)


def drop_cuda_requirements(packages):
    """Takes the CUDA libraries and Triton, which compiles for GPUs, out of PyTorch's requirements."""
    metadata = next(packages.glob("torch-*.dist-info")) / "METADATA"
    kept = re.sub(r"(?m)^Requires-Dist: (cuda-|nvidia-|triton\b).*\n", "", metadata.read_text())
    metadata.write_text(kept)


def absent_libraries(packages):
    """The libraries that PyTorch's own ones require and that are not installed, with the functions that are used."""
    libraries = sorted((packages / "torch/lib").glob("lib*.so"))
    needed = {library: re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-dW", library)) for library in libraries}
    nvidia = {path.name for path in packages.glob("nvidia/*/lib/*")}
    stems = {
        name: name.removeprefix("lib").split(".")[0].split("_")[0].lower()
        for name in sorted({name for names in needed.values() for name in names} - nvidia)
        # `libcuda` is the driver's, and is looked for only where a GPU is.
        if re.match(r"lib(cu|nccl|nv)", name) and not name.startswith("libcuda.")
    }
    absent = {name: collections.defaultdict(set) for name in stems}
    for library in libraries:
        # Which library provides a version is told by the table of required versions.
        owners, file = {}, ""
        for line in run("readelf", "-VW", library).splitlines():
            file = found[1] if (found := re.search(r"Version: \d+  File: (\S+)", line)) else file
            if found := re.search(r"Name: (\S+)  Flags: ", line):
                owners[found[1]] = file
        for line in run("readelf", "--dyn-syms", "-W", library).splitlines():
            if not (found := re.search(r" GLOBAL +DEFAULT +UND (\w+)(?:@(\S+))?", line)):
                continue
            name, version = found[1], found[2] or ""
            if owners.get(version) in absent:
                absent[owners[version]][version].add(name)
            elif not version:
                for owner, stem in stems.items():
                    if name.lower().startswith(stem):
                        absent[owner][""].add(name)
    return absent


def write_stub(library, versions, work):
    """Compiles a shared library with functions of the given versions and names."""
    source, script = work / "stub.c", work / "stub.map"
    names = sorted({name for names in versions.values() for name in names})
    source.write_text(STUB_HEAD + "".join(f'void {name}(void) {{ stop("{name}"); }}\n' for name in names))
    options = []
    if any(versions):
        nodes = ["%s {\n%s};\n" % (node, "".join(f"  {name};\n" for name in sorted(names)))
                 for node, names in versions.items() if node]
        script.write_text("".join(nodes))
        options = [f"-Wl,--version-script={script}"]
    run("gcc", "-w", "-O1", "-fno-builtin", "-shared", "-fPIC", "-s", f"-Wl,-soname,{library.name}", *options,
        "-o", library, source)


def install_torch(python, packages):
    """Installs PyTorch with stubs for the libraries that only a GPU uses."""
    if sys.platform != "linux":
        # PyPI's wheels for other systems are built for the CPU.
        pip(python, *TORCH)
        return
    pip(python, "--no-deps", *TORCH, *CUDA)
    drop_cuda_requirements(packages)
    folder = next(packages.glob("nvidia/*/lib"))
    with tempfile.TemporaryDirectory() as work:
        for name, versions in absent_libraries(packages).items():
            write_stub(folder / name, versions, pathlib.Path(work))


def make(folder):
    """Makes the environment, which will be renamed to `folder`, and returns its present path."""
    made = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(made, ignore_errors=True)
    run(sys.executable, "-m", "venv", made)
    python = made / "bin/python"
    packages = next(made.glob("lib/python3*/site-packages"))
    install_torch(python, packages)
    (made / "constraints.txt").write_text("\n".join([*TORCH, ""]))
    pip(python, "--constraint", made / "constraints.txt", *TORCH, *PACKAGES)
    run(python, "-c", "import torch; torch.ones(2, 2) @ torch.ones(2, 2)")
    # Scripts begin with the path of their interpreter.
    for script in (made / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(made), os.fsencode(folder)))
    (made / "made-of").write_text(MADE_OF)
    return made


def is_current(folder):
    """Whether `folder` has the complete environment that this script makes."""
    try:
        return (folder / "made-of").read_text() == MADE_OF
    except OSError:
        return False


def main():
    """Makes the environment in the folder that the first argument names, unless it is there."""
    folder = pathlib.Path(os.path.abspath(sys.argv[1]))
    if is_current(folder):
        return
    if sys.version_info < (3, 10):
        sys.exit(f"the environment needs Python 3.10 or newer, and {sys.executable} is {sys.version.split()[0]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        # Another process that makes the same environment is waited for.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current(folder):
            return
        made = make(folder)
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(made, folder)
        shutil.rmtree(old, ignore_errors=True)


main()
