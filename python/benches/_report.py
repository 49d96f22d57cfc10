"""Results: a JSON file and a plot for each benchmark, and one page of tables for all of them."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import _plot

PAGE = "python.md"
FOLDER = "python"
_ORDER = ("reads", "epochs", "peers")


@dataclass
class Table:
    """A table of results."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown: the first column is text, the others are numbers."""
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        lines.append(_line(self.columns))
        lines.append(_line(["---"] + ["---:"] * (len(self.columns) - 1)))
        return "\n".join(lines + [_line(row) for row in self.rows]) + "\n"


@dataclass
class Results:
    """What one benchmark found."""

    name: str
    title: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    targets: list[list[str]] = field(default_factory=list)
    bars: list[tuple[str, float]] = field(default_factory=list)
    bars_title: str = ""
    left_out: list[str] = field(default_factory=list)
    raw_s: dict[str, list[float]] = field(default_factory=dict)

    def at_most(self, what: str, found: float, limit: float, unit: str = " ×") -> None:
        """Adds a target: a number that should not be larger than a limit."""
        self.targets.append([what, f"≤ {limit:g}{unit}", f"{found:.3g}{unit}", _met(found <= limit)])

    def at_least(self, what: str, found: float, limit: float, unit: str = " ×") -> None:
        """Adds a target: a number that should not be smaller than a limit."""
        self.targets.append([what, f"≥ {limit:g}{unit}", f"{found:.3g}{unit}", _met(found >= limit)])

    def markdown(self) -> str:
        """The section of this benchmark."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        environment = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        parts = [f"## {self.title}\n", f"{environment}. Settings: {settings}.\n"]
        parts.append(f"Raw numbers: [{self.name}.json]({FOLDER}/{self.name}.json).\n")
        if self.bars:
            parts.append(f"![{self.bars_title}]({FOLDER}/{self.name}.svg)\n")
        if self.targets:
            parts.append(Table("Targets", ["what", "target", "found", ""], self.targets).markdown())
        parts += [table.markdown() for table in self.tables]
        if self.left_out:
            parts.append("Left out: " + "; ".join(self.left_out) + ".\n")
        return "\n".join(parts)


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def us(seconds: float) -> str:
    """A duration in microseconds."""
    return f"{seconds * 1e6:,.1f}"


def arguments(description: str, rows: int, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", type=int, default=rows, help=f"number of rows (default {rows})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"number of rounds (default {rounds})")
    parser.add_argument("--dir", type=Path, help="folder for the data (default: a temporary folder), left empty")
    parser.add_argument("--out", type=Path, help=f"folder of the reports: writes {PAGE} and {FOLDER}/ there")
    return parser


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """A new folder for the data, which is removed in the end."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="tensorcask-bench-", dir=given))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    import tensorcask
    import torch

    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "CPU": _cpu(),
        "cores": os.cpu_count(),
        "memory": f"{memory_gib:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load average before the run": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "tensorcask": tensorcask.__version__,
    }


def version(package: str) -> str | None:
    """The version of a package; None if it is not there. Packages that are only on the path tell it themselves."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, AttributeError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def finish(results: Results, out: Path | None) -> None:
    """Prints the results, and writes them if there is a folder of reports."""
    print(results.markdown())
    if out is None:
        return
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{results.name}.json").write_text(json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n")
    if results.bars:
        (folder / f"{results.name}.svg").write_text(_plot.bars(results.bars_title, results.bars))
    (out / PAGE).write_text(_page(folder))
    print(f"wrote {out / PAGE}", file=sys.stderr)


def _page(folder: Path) -> str:
    parts = [
        "# The Python package, measured\n",
        "Written by the scripts of `python/benches`. Times are medians over rounds, in which the contenders take\n"
        "turns. Ratios are medians of the ratios within a round, with quartiles in brackets. Before a contender is\n"
        "timed, its rows are compared with the expected ones. All reads are warm: the files are in the page cache.\n",
    ]
    for name in _ORDER:
        # A benchmark that ran with several settings has a file for each.
        for path in sorted(folder.glob(f"{name}*.json")):
            parts.append(_loaded(json.loads(path.read_text())).markdown())
    return "\n".join(parts)


def _loaded(values: dict[str, Any]) -> Results:
    tables = [Table(**table) for table in values.pop("tables")]
    return Results(**values, tables=tables)
