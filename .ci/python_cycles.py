#!/usr/bin/env python3
"""Fails if the modules of a Python package import each other in a cycle: `python_cycles.py PACKAGE`, or `--self-test`.

The modules and the packages in each package are the nodes of a graph, as in `cycles.py`. Imports in functions count;
imports for type checkers do not. An import of the package itself counts only if it names something that
`__init__.py` defines.
"""

import ast
import sys
import tempfile
from pathlib import Path

from cycles import circles


def without_type_checking(body):
    """All statements of `body` and below, but those under `if TYPE_CHECKING:`."""
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from without_type_checking(statement.orelse)
            continue
        yield statement
        for part in ("body", "orelse", "finalbody"):
            yield from without_type_checking(getattr(statement, part, []))
        for part in getattr(statement, "handlers", []) + getattr(statement, "cases", []):
            yield from without_type_checking(part.body)


def module_of(file, root):
    parts = (root.name, *file.relative_to(root).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(file, root, modules):
    """The files of the package that `file` imports from."""
    package = (root.name, *file.relative_to(root).parts[:-1])
    for statement in without_type_checking(ast.parse(file.read_text()).body):
        if isinstance(statement, ast.Import):
            paths = [tuple(alias.name.split(".")) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else ()
            base += tuple(statement.module.split(".")) if statement.module else ()
            paths = [(*base, alias.name) for alias in statement.names]
        else:
            continue
        for path in paths:
            # Native modules and names in modules are not among the files.
            found = modules.get(path) or modules.get(path[:-1])
            native = path[0] == root.name and path[-1].startswith("_native")
            if found and found != file and not native:
                yield found


def check(root):
    """The cycles in the package at `root`, one line each."""
    files = sorted(root.rglob("*.py"))
    modules = {module_of(file, root): file for file in files}
    edges = {file: set(imports(file, root, modules)) for file in files}
    lines = []
    for folder in sorted({file.parent for file in files}):
        graph = {}
        for file, targets in edges.items():
            for target in targets:
                if folder in file.parents and folder in target.parents:
                    one, other = (path.relative_to(folder).parts[0] for path in (file, target))
                    if one != other:
                        graph.setdefault(one, set()).add(other)
        lines += [f"{folder}: {' -> '.join(circle)}" for circle in circles(graph)]
    return lines


def self_test():
    def found(**files):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "package")
            for name, text in {"init": "", **files}.items():
                path = root / (name.replace("__", "/").replace("init", "__init__") + ".py")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return len(check(root))

    assert found(a="from .b import B", b="") == 0
    assert found(a="from .b import B", b="from .a import A") == 1
    assert found(a="from . import b", b="def f():\n    from package.a import A") == 1
    assert found(a="from . import b", b="if TYPE_CHECKING:\n    from .a import A") == 0
    assert found(a="from . import b", b="try:\n    import package.a\nexcept ImportError:\n    pass") == 1
    assert found(init="from .a import A", a="from . import b", b="") == 0
    assert found(init="from .a import A", a="from . import x") == 1
    assert found(x__init="", x__a="from ..b import B", b="from .x.a import A") == 1
    assert found(x__init="from .a import A", x__a="from ..b import B", b="") == 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        sys.exit()
    lines = [line for root in sys.argv[1:] for line in check(Path(root))]
    print("\n".join(lines) or "no cycles")
    sys.exit(1 if lines else 0)
