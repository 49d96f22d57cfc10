"""What caching saves: the second epoch over frozen modules, a new process, and what a miss costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorcask as tc
import torch
from torch import nn

from _measure import Times, ratio, take_turns
from _report import Results, Table, arguments, environment, finish, version, work_folder
from _rows import BATCH, parts

MODELS = "TENSORCASK_MODELS"
TOKENS = 128


class Perceptron(nn.Module):
    """Two linear layers: 3.1 MFLOP a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(768, 1024), nn.GELU(), nn.Linear(1024, 768)).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 768] to [n, 768]."""
        found: torch.Tensor = self.layers(x)
        return found


class Convolutions(nn.Module):
    """Three convolutions on small images: 49 MFLOP a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).requires_grad_(False)  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, 32, 32] to [n, 128]."""
        found: torch.Tensor = self.layers(x)
        return found


class Sentences(nn.Module):
    """A transformer, whose token outputs are averaged."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder).eval().requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, 128] token ids to [n, 384]."""
        found: torch.Tensor = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        return found.mean(1)


@dataclass
class Case:
    """A module with its samples, and how many times as fast the second epoch should be."""

    name: str
    make: Callable[[], nn.Module]
    inputs: torch.Tensor
    at_least: float


def cases(rows: int) -> list[Case]:
    """The modules that are there. Slow ones get fewer samples."""
    generator = torch.Generator().manual_seed(1)
    found = [
        Case("3 MFLOP perceptron", Perceptron, torch.randn(rows, 768, generator=generator), 10),
        Case("49 MFLOP convolutions", Convolutions, torch.randn(rows // 2, 3, 32, 32, generator=generator), 30),
    ]
    model = _model()
    if model is not None:
        tokens = torch.randint(1000, 20_000, (max(rows // 64, 16), TOKENS), generator=generator)
        found.append(Case(f"all-MiniLM-L6-v2, {TOKENS} tokens", lambda: Sentences(model), tokens, 1000))
    return found


def _model() -> Path | None:
    folder = Path(os.environ[MODELS]) / "all-MiniLM-L6-v2" if MODELS in os.environ else None
    return folder if folder is not None and folder.is_dir() and version("transformers") else None


def epoch(call: Callable[..., torch.Tensor], inputs: torch.Tensor, by_ids: bool) -> list[torch.Tensor]:
    """One pass over all samples in batches of 256."""
    with torch.no_grad():
        if not by_ids:
            return [call(inputs[a:b]) for a, b in parts(len(inputs), BATCH)]
        return [call(inputs[a:b], ids=torch.arange(a, b)) for a, b in parts(len(inputs), BATCH)]


def _check(case: Case, name: str, found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
        raise SystemExit(f"{case.name}: the epoch {name} returned other outputs than the one that computed them")


def second_epoch(case: Case, folder: Path, rounds: int, results: Results, table: Table) -> Times:
    """Times computing against epochs that find everything. Returns the times of computing."""
    module = case.make().eval()
    by_ids = tc.cache(module, folder, module_id=f"{case.name.split()[0]}_ids", version="1")
    by_content = tc.cache(module, folder, module_id=f"{case.name.split()[0]}_content", version="1")
    first, first_content = epoch(by_ids, case.inputs, True), epoch(by_content, case.inputs, False)
    by_ids.flush(), by_content.flush()
    _check(case, "by ids", epoch(by_ids, case.inputs, True), first)
    _check(case, "by content", epoch(by_content, case.inputs, False), first_content)
    misses = by_ids.stats()["misses"], by_content.stats()["misses"]
    times = take_turns(
        {
            "computing": lambda _: epoch(module, case.inputs, False),
            "by ids": lambda _: epoch(by_ids, case.inputs, True),
            "by content": lambda _: epoch(by_content, case.inputs, False),
        },
        rounds,
    )
    if (by_ids.stats()["misses"], by_content.stats()["misses"]) != misses:
        raise SystemExit(f"{case.name}: samples were computed that should have been found")
    computing = times["computing"]
    for name, found in times.items():
        share = ratio(computing, found)
        speed = "1" if found is computing else str(share)
        samples, ms = len(case.inputs), found.median_s * 1e3
        us = ms * 1e3 / samples
        table.rows.append([case.name, f"{samples:,}", name, f"{ms:,.2f}", f"{us:,.2f}", speed])
        results.raw_s[f"{case.name}: {name}"] = found.rounds_s
        label = f"{case.name}, {name}"
        results.bars.append((label if found is computing else f"tensorcask {label}", us))
    results.at_least(f"second epoch by ids, {case.name}", ratio(computing, times["by ids"]).median, case.at_least)
    return computing


def new_process(case: Case, folder: Path, rounds: int, computing: Times, results: Results) -> None:
    """Times an epoch in a process of its own, from `tensorcask.cache` on. torch is imported before."""
    weights, inputs = folder / "weights.pt", folder / "inputs.pt"
    module = case.make().eval()
    torch.save(module.state_dict(), weights)
    torch.save(case.inputs, inputs)
    _child(weights, inputs, folder)  # computes and keeps everything
    found_s = []
    for _ in range(rounds):
        seconds, misses = _child(weights, inputs, folder)
        if misses:
            raise SystemExit(f"the new process computed {misses} samples that should have been found")
        found_s.append(seconds)
    found = Times(found_s)
    speed = computing.median_s / found.median_s
    table = Table(
        "The epoch of a new process", ["module", "samples", "ms", "× as fast as computing"],
        note="From the call of `tensorcask.cache`, which opens the files and digests the weights, to the last batch. "
        "Computing is timed in the process of the table above.",
    )  # fmt: skip
    table.rows.append([case.name, f"{len(case.inputs):,}", f"{found.median_s * 1e3:.2f}", f"{speed:.1f}"])
    results.tables.append(table)
    results.raw_s[f"{case.name}: new process"] = found_s
    results.at_least(f"new process, {case.name}", speed, 5)


def _child(weights: Path, inputs: Path, folder: Path) -> tuple[float, int]:
    command = [sys.executable, __file__, "--child", str(weights), str(inputs), str(folder / "of_process")]
    seconds, misses = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(misses)


def child(weights: str, inputs: str, folder: str) -> None:
    """The program of the new process: prints the seconds of the epoch, and the number of misses."""
    torch.set_num_threads(1)
    module = Perceptron().eval()
    module.load_state_dict(torch.load(weights, weights_only=True))
    samples = torch.load(inputs, weights_only=True)
    begin_s = time.perf_counter()
    cached = tc.cache(module, folder, module_id="perceptron", version="1")
    epoch(cached, samples, True)
    taken_s = time.perf_counter() - begin_s
    cached.flush()
    print(taken_s, cached.stats()["misses"])


class OneMillisecond(nn.Module):
    """A linear layer, repeated until a sample takes about one millisecond."""

    def __init__(self, repeats: int) -> None:
        super().__init__()
        self.layer = nn.Linear(768, 768).requires_grad_(False)
        self.repeats = repeats

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 768] to [n, 768]."""
        for _ in range(self.repeats):
            x = torch.tanh(self.layer(x))
        return x


def _one_millisecond(batch: torch.Tensor) -> OneMillisecond:
    probe = OneMillisecond(32).eval()
    with torch.no_grad():
        times = take_turns({"the probe": lambda _: probe(batch)}, 9)
    return OneMillisecond(max(1, round(1e-3 * len(batch) * probe.repeats / times["the probe"].median_s))).eval()


def misses(folder: Path, batch_size: int, rounds: int, results: Results) -> None:
    """Times calls that find nothing against calls of the module."""
    torch.manual_seed(1)
    module = _one_millisecond(torch.randn(batch_size, 768))
    by_ids = tc.cache(module, folder, module_id="miss_ids", version="1")
    by_content = tc.cache(module, folder, module_id="miss_content", version="1")
    count = [0]

    def fresh() -> torch.Tensor:
        count[0] += 1
        return torch.randn(batch_size, 768, generator=torch.Generator().manual_seed(count[0]))

    def ids_call(_: int) -> torch.Tensor:
        batch = fresh()
        return by_ids(batch, ids=torch.arange(count[0] * batch_size, (count[0] + 1) * batch_size))

    contenders = {
        "the module": lambda _: module(fresh()),
        "a miss by ids": ids_call,
        "a miss by content": lambda _: by_content(fresh()),
    }
    with torch.no_grad():
        times = take_turns(contenders, rounds)
    if by_ids.stats()["hits"] or by_content.stats()["hits"]:
        raise SystemExit("samples were found that should have been computed")
    base = times["the module"]
    table = Table(
        "Misses", ["", "ms", "µs a sample", "× the module"],
        note=f"Batches of {batch_size}, 768 float32 in and out, a module of {module.repeats} layers. "
        "The flush is not timed.",
    )  # fmt: skip
    for name, found in times.items():
        against = ratio(found, base)
        us = found.median_s / batch_size * 1e6
        table.rows.append([name, f"{found.median_s * 1e3:.2f}", f"{us:.1f}", "1" if found is base else str(against)])
        results.raw_s[name] = found.rounds_s
        if found is not base:
            results.at_most(f"{name}, module of 1 ms a sample", (against.median - 1) * 100, 5, " % more")
    results.tables.append(table)


def main() -> None:
    parser = arguments(__doc__ or "", rows=8192, rounds=9)
    parser.add_argument("--child", nargs=3, metavar=("WEIGHTS", "INPUTS", "FOLDER"), help="used by this script itself")
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    torch.set_num_threads(1)
    results = Results("epochs", "Epochs", {"rows": given.rows, "rounds": given.rounds}, environment())
    results.bars_title = "Microseconds per sample in an epoch (less is better)"
    table = Table("The second epoch", ["module", "samples", "epoch", "ms", "µs a sample", "× as fast as computing"])
    results.tables.append(table)
    found = cases(given.rows)
    with work_folder(given.dir) as folder:
        computing = [second_epoch(case, folder / "epochs", given.rounds, results, table) for case in found]
        new_process(found[0], folder, given.rounds, computing[0], results)
        misses(folder / "misses", 64, given.rounds, results)
    if len(found) < 3:
        results.left_out.append(f"all-MiniLM-L6-v2: set {MODELS} and install transformers")
    finish(results, given.out)


if __name__ == "__main__":
    main()
