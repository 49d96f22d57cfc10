"""Names of Python objects that are the same in every process, and which code is a library's."""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9._-]+")
MODULE_ID_LEN_BYTES = 200
"""The engine's limit for the length of a module id."""


def qualified_name(value: Any) -> str:
    """The module and qualified name of a class or function. The main program has the name that it is imported by."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    module = getattr(value, "__module__", None)
    if module is None:
        # Methods of built-in types have no module of their own.
        module = getattr(getattr(value, "__objclass__", None), "__module__", None)
    return f"{imported_name(module)}.{name}" if module else name


def imported_name(module: str) -> str:
    """The name of a module, where the main program counts as the file it was started from.

    `python train.py`, a child that multiprocessing spawns, and `import train` then agree.
    """
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in ("__main__", "__mp_main__"):
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def module_id_of(name: str) -> str:
    """A module id, which names a folder, made of a qualified name."""
    cleaned = _NOT_ALLOWED.sub("-", name.replace("<locals>.", "").replace("<lambda>", "lambda"))
    return cleaned.strip(".-")[-MODULE_ID_LEN_BYTES:] or "function"


def is_library(module: str | None) -> bool:
    """Whether the code of this module is installed, or part of Python, rather than written by the user."""
    if not module:
        return True
    if module in ("__main__", "__mp_main__"):
        return False
    top = module.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names or top == "tensorcask":
        return True
    found = sys.modules.get(module)
    return found is not None and is_library_module(found)


def is_library_module(module: ModuleType) -> bool:
    """As `is_library`, for a module object."""
    file = getattr(module, "__file__", None)
    if file is None:
        # Namespace packages are folders of the user, unless they are installed.
        paths = list(getattr(module, "__path__", []))
        return module.__name__ in sys.builtin_module_names or any(is_library_file(path + "/") for path in paths)
    return is_library_file(file) or module.__name__.partition(".")[0] in sys.stdlib_module_names


@functools.lru_cache(maxsize=4096)
def is_library_file(file: str) -> bool:
    """Whether a source file belongs to Python or to an installed package."""
    if file.startswith("<frozen") or _INSTALLED.search(file):
        return True
    resolved = str(Path(file).resolve())
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")}
    return any(resolved.startswith(str(Path(folder).resolve()) + "/") for folder in folders)
