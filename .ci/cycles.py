#!/usr/bin/env python3
"""Fails if modules import each other in a cycle: `cycles.py SRC...`, or `cycles.py --self-test`.

The files and folders in each folder are the nodes of a graph. A node points to another one if one of its files imports
from a file of the other. No such graph may have a cycle, which covers cycles of files and cycles of folders. Test
modules, in a file `tests.rs` or marked `#[cfg(test)]`, do not count, nor does `mod x;`.
"""

import re
import sys
import tempfile
from pathlib import Path

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
STRING = re.compile(r'r#*".*?"#*|"(?:\\.|[^"\\])*"', re.S)
USE = re.compile(r"\buse\s+([^;]+);")
PATH = re.compile(r"\b(?:crate|super)(?:::\w+)+")


def without_tests(text):
    """`text` without comments, strings, and items that are compiled for tests only."""
    text = STRING.sub('""', COMMENT.sub(" ", text))
    kept, at = [], 0
    for found in re.finditer(r"#\[cfg\((?:all\()?test\b[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:pub\S*\s+)?(?:mod|use|fn|impl)\b[^;{]*([;{])", text):
        if found.start() < at:
            continue
        kept.append(text[at : found.start()])
        at, depth = found.end(), found.group(1) == "{"
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
    return "".join(kept) + text[at:]


def expand(tree):
    """The paths of a `use` tree: `a::{b, c::{self, d}}` gives `a::b`, `a::c`, `a::c::d`."""
    tree = re.sub(r"\s+as\s+\w+", "", tree).strip()
    brace = tree.find("{")
    if brace < 0:
        return [tree.removesuffix("::self").removesuffix("::*")]
    paths, depth, part = [], 0, ""
    for letter in tree[brace + 1 : tree.rindex("}")] + ",":
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            paths += expand(tree[:brace] + part.strip()) if part.strip() else []
            part = ""
        else:
            part += letter
    return paths


def module_of(file, root):
    parts = list(file.relative_to(root).with_suffix("").parts)
    return tuple(parts[:-1] if parts[-1] in ("mod", "lib", "main") else parts)


def imports(file, module, modules):
    """The files that `file` imports from."""
    text = without_tests(file.read_text())
    paths = [path for use in USE.findall(text) for path in expand(use)] + PATH.findall(USE.sub("", text))
    for path in paths:
        parts = [part.strip() for part in path.split("::")]
        if parts[0] == "crate":
            parts = parts[1:]
        elif parts[0] in ("super", "self") or (*module, parts[0]) in modules:
            base = list(module)
            while parts and parts[0] in ("super", "self"):
                base = base[:-1] if parts[0] == "super" else base
                parts = parts[1:]
            parts = base + parts
        else:
            continue
        while parts and tuple(parts) not in modules:
            parts.pop()
        target = modules[tuple(parts)]
        if target != file:
            yield target


def circles(graph):
    """A cycle of each strongly connected part of `graph` that has more than one node."""
    done = set()
    for start in sorted(graph):
        stack, path = [(start, iter(sorted(graph[start])))], [start]
        while stack and start not in done:
            node, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                done.add(node)
                stack.pop()
                path.pop()
            elif following in path:
                yield path[path.index(following) :] + [following]
                done.update(path)
            elif following not in done:
                stack.append((following, iter(sorted(graph.get(following, ())))))
                path.append(following)


def check(root):
    """The cycles below `root`, one line each."""
    files = sorted(file for file in root.rglob("*.rs") if file.name != "tests.rs")
    modules = {module_of(file, root): file for file in files}
    edges = {file: set(imports(file, module_of(file, root), modules)) for file in files}
    lines = []
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(root)}
    for folder in sorted(folders):
        graph, why = {}, {}
        for file, targets in edges.items():
            for target in targets:
                if folder in file.parents and folder in target.parents:
                    one, other = (path.relative_to(folder).parts[0] for path in (file, target))
                    if one != other:
                        graph.setdefault(one, set()).add(other)
                        why.setdefault((one, other), f"{file.relative_to(root)} imports {target.relative_to(root)}")
        for circle in circles(graph):
            steps = [why[pair] for pair in zip(circle, circle[1:])]
            lines.append(f"{folder}: {' -> '.join(circle)}\n    " + "\n    ".join(steps))
    return lines


def self_test():
    def found(**files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder, name.replace("__", "/") + ".rs")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return len(check(Path(folder)))

    assert found(lib="mod a; mod b;", a="use crate::b::B;", b="") == 0
    assert found(a="use crate::b::B;", b="use super::a::A;") == 1
    assert found(a="use crate::b::B;", b="fn f() { crate::a::f() }") == 1
    assert found(a="use crate::b::B;", b="// use crate::a::A;\nfn f() { \"crate::a::f\"; }") == 0
    assert found(a="use crate::b::B;", b="#[cfg(test)]\nmod tests { use crate::a::A; fn f() {} }\nfn g() {}") == 0
    assert found(a="use crate::b::B;", b="#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::a::A;") == 1
    assert found(a="use crate::b::B;", b="#[cfg(all(test, unix))]\n#[expect(x)]\nmod tests { use crate::a::A; }") == 0
    # Cycles of three modules, by import groups, and through a folder.
    assert found(a="use crate::{b::{self, B}};", b="use crate::{c, d};", c="use crate::a::{A};", d="") == 1
    assert found(x__a="use crate::y::b::B;", x__c="", y__b="", y__d="use crate::x::c::C;", x__mod="", y__mod="") == 1
    assert found(x__a="use super::b::B;", x__b="", x__mod="mod a; mod b; pub use a::A;") == 0
    assert found(x__a="use super::b::B;", x__b="use super::X;", x__mod="mod a; mod b; pub use a::A; pub struct X;") == 1
    # Not cycles: an import of a child module, and a name with the same prefix.
    assert found(x__mod="use self::a::A; mod a;", x__a="", y="use crate::x::A;") == 0
    assert found(a="use crate::ab::B;", ab="use crate::c::a;", c="") == 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        sys.exit()
    found = [line for root in sys.argv[1:] for line in check(Path(root))]
    print("\n".join(found) or "no cycles")
    sys.exit(1 if found else 0)
