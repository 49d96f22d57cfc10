"""Fails if a README has a link that crates.io cannot follow, or one to a file that this repository does not have."""

import json
import re
import subprocess
import sys
from pathlib import Path

metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--no-deps", "--format-version", "1", "--locked"]))
files = next(p["repository"] for p in metadata["packages"] if p["name"] == "tensorcask") + "/blob/main/"

wrong = 0
for readme in sys.argv[1:]:
    prose = re.sub(r"^```.*?^```", "", Path(readme).read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    headings = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
    defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", prose, re.MULTILINE))
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + list(defined.values())
    undefined = {name for _, name in re.findall(r"\[([^\]]+)\]\[([^\]]+)\]", prose)} - set(defined)
    found = [f"[{name}] is not defined" for name in sorted(undefined)]
    for target in targets:
        if target.startswith("#"):
            if target[1:] not in headings:
                found.append(f"{target} is no heading")
        elif target.startswith(files):
            if not Path(target.removeprefix(files)).exists():
                found.append(f"{target} is not in this repository")
        elif not target.startswith("https://"):
            found.append(f"{target} is relative: crates.io has no such page")
    for what in found:
        print(f"{readme}: {what}")
    wrong += len(found)
    print(f"{readme}: {len(targets)} links, {len(found)} wrong")
sys.exit(bool(wrong))
