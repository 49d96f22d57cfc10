"""Reads `cargo metadata` and fails if a dependency cannot be used under a licence on the list."""

import json
import re
import sys

ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC",
    "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip


def acceptable(expression):
    """Whether an SPDX expression of AND, OR and parentheses can be satisfied by licences on the list."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    tokens = []
    for word in words:
        if tokens and (word == "WITH" or tokens[-1].endswith(" WITH")):
            tokens[-1] += " " + word
        else:
            tokens.append(word)
    python = {"AND": "and", "OR": "or", "(": "(", ")": ")"}
    return eval(" ".join(python.get(token, str(token in ALLOWED)) for token in tokens))


packages = json.load(sys.stdin)["packages"]
refused = [(p["name"], p["license"]) for p in packages if not p["license"] or not acceptable(p["license"])]
for name, licence in refused:
    print(f"{name}: {licence} is not on the list in .ci/licences.py")
print(f"{len(packages)} packages, {len(refused)} refused")
sys.exit(bool(refused))
