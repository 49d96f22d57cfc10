"""What a read costs, compared with a copy of the same rows out of a mapped tensor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorcask as tc
import torch
from torch import nn

from _measure import Call, Ratio, Times, ratio, take_turns
from _report import Results, Table, arguments, environment, finish, us, version, work_folder
from _rows import BATCH, batches, check, mapped_rows, parts

WIDTH = 768
TOKENS, TOKEN_WIDTH, PADDED_BATCH = (32, 512), 384, 64
TABLE, COPY = "index_select of a mapped tensor", "the copy"


@dataclass
class Group:
    """Contenders that take turns. The first one is what the others are compared with."""

    title: str
    note: str
    contenders: dict[str, Call]
    targets: dict[str, float]


def string_key(number: int) -> str:
    """The key of a row in a store of strings."""
    return f"train/{number:08d}.jpg"


class Project(nn.Module):
    """One linear layer on flattened inputs."""

    def __init__(self, inputs: int, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, WIDTH).requires_grad_(False)
        self.names = names

    def forward(self, x: torch.Tensor) -> Any:
        """[n, …] to [n, 768], or to a dict of as many bytes."""
        found = self.layer(x.flatten(1))
        if not self.names:
            return found
        return dict(zip(self.names, found.chunk(len(self.names), 1), strict=True))


def stores(folder: Path, rows: torch.Tensor) -> Group:
    """Reads by integers and by strings."""
    by_int, by_string = tc.open(folder, "by_int"), tc.open(folder, "by_string")
    for start, stop in parts(len(rows)):
        by_int.put(torch.arange(start, stop), rows[start:stop])
        by_string.put([string_key(number) for number in range(start, stop)], rows[start:stop])
    by_int.flush(), by_string.flush()
    numbers = batches(len(rows))
    names = [[string_key(number) for number in batch.tolist()] for batch in numbers]
    out = torch.empty(BATCH, WIDTH)
    contenders: dict[str, Call] = {
        TABLE: lambda n: torch.index_select(rows, 0, numbers[n % len(numbers)]),
        "take(int64 tensor)": lambda n: by_int.take(numbers[n % len(numbers)]),
        "take(int64 tensor, out=)": lambda n: by_int.take(numbers[n % len(numbers)], out=out),
        "take(list of str)": lambda n: by_string.take(names[n % len(names)]),
        "get(int64 tensor)": lambda n: by_int.get(numbers[n % len(numbers)])[0],
    }
    for name, read in contenders.items():
        check(name, read, lambda n: rows[numbers[n % len(numbers)]])
    return Group(
        f"Reads of a store of {len(rows):,} rows",
        f"{BATCH} random rows of {WIDTH} float32, warm.",
        contenders,
        {"take(int64 tensor)": 1.15, "take(list of str)": 1.4},
    )


def kept(folder: Path, module_id: str, module: nn.Module, inputs: torch.Tensor) -> tuple[Any, Any]:
    """A cached module and the outputs that it computed for all inputs."""
    cached = tc.cache(module, folder, module_id=module_id)
    found = [cached(inputs[a:b], ids=torch.arange(a, b)) for a, b in parts(len(inputs))]
    cached.flush()
    return cached, found


def calls_by(folder: Path, samples: int, shape: tuple[int, ...], name: str) -> Group:
    """Calls of a cached module that find every sample, by ids and by content."""
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(3))
    module = Project(inputs[0].numel()).eval()
    cached, found = kept(folder, f"{name}_ids", module, inputs)
    content = tc.cache(module, folder, module_id=f"{name}_content")
    by_content = torch.cat([content(inputs[a:b]) for a, b in parts(samples)])
    content.flush()
    rows = torch.cat(found)
    store = tc.open(folder, f"{name}_store")
    store.put(torch.arange(samples), rows)
    store.flush()
    numbers = batches(samples, count=64)
    given = [inputs[batch] for batch in numbers]
    contenders: dict[str, Call] = {
        "take(int64 tensor)": lambda n: store.take(numbers[n % len(numbers)]),
        "call by ids": lambda n: cached(given[n % len(given)], ids=numbers[n % len(numbers)]),
        "call by content": lambda n: content(given[n % len(given)]),
    }
    before = cached.stats()["misses"], content.stats()["misses"]
    for label, read in contenders.items():
        expected = by_content if label == "call by content" else rows
        check(label, read, lambda n, expected=expected: expected[numbers[n % len(numbers)]])
    if (cached.stats()["misses"], content.stats()["misses"]) != before:
        raise SystemExit("a call was computed that should have been found")
    size = inputs[0].numel() * 4 * BATCH / 1024
    return Group(
        f"Calls that find every sample, inputs [{BATCH}, {', '.join(map(str, shape))}]",
        f"{samples:,} samples; outputs [{BATCH}, {WIDTH}] float32; inputs of a call: {size:,.0f} KiB.",
        contenders,
        {"call by ids": 1.5, "call by content": 3.0},
    )


def trees(folder: Path, samples: int) -> Group:
    """Outputs of one tensor and of four, with as many bytes."""
    inputs = torch.randn(samples, 16, generator=torch.Generator().manual_seed(4))
    names = ("a", "b", "c", "d")
    one, found = kept(folder, "one_tensor", Project(16).eval(), inputs)
    rows = torch.cat(found)
    four, found_four = kept(folder, "four_tensors", Project(16, names).eval(), inputs)
    rows_four = torch.cat([torch.cat(list(part.values()), 1) for part in found_four])
    numbers = batches(samples, count=64)
    given = [inputs[batch] for batch in numbers]

    def call(cached: Any) -> Call:
        return lambda n: cached(given[n % len(given)], ids=numbers[n % len(numbers)])

    contenders = {"one tensor": call(one), "dict of 4 tensors": call(four)}
    check("one tensor", contenders["one tensor"], lambda n: rows[numbers[n]])
    check("dict", lambda n: torch.cat(list(call(four)(n).values()), 1), lambda n: rows_four[numbers[n]])
    targets = {"dict of 4 tensors": 1.3}
    if version("transformers"):
        from _outputs import ProjectOutput

        output, found_output = kept(folder, "model_output", ProjectOutput(Project(16, names)).eval(), inputs)
        rows_output = torch.cat([torch.cat(part.to_tuple(), 1) for part in found_output])
        contenders["ModelOutput of 4 tensors"] = call(output)
        check("ModelOutput", lambda n: torch.cat(call(output)(n).to_tuple(), 1), lambda n: rows_output[numbers[n]])
        targets["ModelOutput of 4 tensors"] = 1.3
    return Group(
        "Calls by ids whose output is a tree",
        f"{samples:,} samples; {BATCH} × {WIDTH} float32 in all.",
        contenders,
        targets,
    )


def tokens(folder: Path, samples: int) -> Group:
    """Outputs of different lengths, as one padded batch and as a list."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(TOKENS[0], TOKENS[1] + 1, (samples,), generator=generator).tolist()
    rows = [torch.randn(length, TOKEN_WIDTH, generator=generator) for length in lengths]

    def embed(numbers: torch.Tensor) -> list[torch.Tensor]:
        return [rows[number] for number in numbers.tolist()]

    given = {"lists": "each", "version": "1", "source": False}
    cached = {
        ragged: tc.cache(embed, folder, module_id=f"tokens_{ragged}", ragged=ragged, **given)
        for ragged in ("pad", "list")
    }
    for one in cached.values():
        for a, b in parts(samples, PADDED_BATCH):
            one(torch.arange(a, b), ids=torch.arange(a, b))
        one.flush()
    numbers = batches(samples, PADDED_BATCH, 64)

    def copy(n: int) -> torch.Tensor:
        picked = [rows[number] for number in numbers[n % len(numbers)].tolist()]
        out = torch.zeros(len(picked), max(map(len, picked)), TOKEN_WIDTH)
        for at, row in enumerate(picked):
            out[at, : len(row)] = row
        return out

    def call(ragged: str) -> Call:
        return lambda n: cached[ragged](numbers[n % len(numbers)], ids=numbers[n % len(numbers)])

    check("padded", call("pad"), copy)
    for found, number in zip(call("list")(0), numbers[0].tolist(), strict=True):
        check("list", lambda _, found=found: found, lambda _, number=number: rows[number], 1)
    return Group(
        f"Token outputs of {TOKENS[0]} to {TOKENS[1]} × {TOKEN_WIDTH} float32",
        f"{samples:,} samples, batches of {PADDED_BATCH}. The copy fills a zeroed padded batch from tensors in memory.",
        {COPY: copy, "call by ids, padded": call("pad"), "call by ids, list": call("list")},
        {"call by ids, padded": 2.0},
    )


def run_group(group: Group, rounds: int, results: Results) -> None:
    """Times a group and adds its table and targets."""
    times = take_turns(group.contenders, rounds)
    base_name = next(iter(times))
    table = Table(group.title, ["", "median µs", "quartiles µs", f"× {base_name}"], note=group.note)
    for name, found in times.items():
        low, high = found.quartiles_s
        against: Ratio | None = ratio(found, times[base_name]) if name != base_name else None
        table.rows.append([name, us(found.median_s), f"{us(low)}–{us(high)}", str(against or "1")])
        results.raw_s[f"{group.title}: {name}"] = found.rounds_s
        if name in group.targets and against is not None:
            results.at_most(f"{group.title}: {name}", against.median, group.targets[name])
        label = name if name in (TABLE, COPY) else f"tensorcask {name}"
        results.bars.append((label, found.median_s * 1e6))
    results.tables.append(table)


_IMPORT = "import torch, time; a = time.perf_counter(); import {what}; print(time.perf_counter() - a)"


def imports(rounds: int, results: Results) -> None:
    """The time of the import in a process that has torch."""
    what = {
        "import tensorcask": "tensorcask",
        "import of tensorcask and of tensorcask.cache": "tensorcask._cache, tensorcask._module",
    }

    def once(statement: str) -> float:
        command = [sys.executable, "-c", _IMPORT.format(what=statement)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    found: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(max(rounds // 2, 3)):
        for name, statement in what.items():
            found[name].append(once(statement))
    table = Table("Import, beyond that of torch", ["", "median ms"])
    for name, times_s in found.items():
        table.rows.append([name, f"{Times(times_s).median_s * 1e3:.1f}"])
        results.raw_s[name] = times_s
        results.at_most(f"{name}, beyond torch", Times(times_s).median_s * 1e3, 30, " ms")
    results.tables.append(table)


def main() -> None:
    parser = arguments(__doc__ or "", rows=100_000, rounds=40)
    parser.add_argument("--samples", type=int, default=8192, help="samples of the cached modules (default 8192)")
    parser.add_argument("--wheel", type=Path, help="a wheel, whose size is reported")
    given = parser.parse_args()
    torch.set_num_threads(1)
    samples = min(given.samples, given.rows)
    settings = {"rows": given.rows, "samples": samples, "rounds": given.rounds}
    results = Results("reads", "Reads", settings, environment())
    results.bars_title = "Microseconds per batch, warm (less is better)"
    with work_folder(given.dir) as folder:
        groups: list[Callable[[], Group]] = [
            lambda: stores(folder, mapped_rows(folder / "rows", given.rows, WIDTH)),
            lambda: calls_by(folder, samples, (64,), "small"),
            lambda: calls_by(folder, samples, (3, 32, 32), "images"),
            lambda: trees(folder, samples),
            lambda: tokens(folder, min(samples, 1024)),
        ]
        for group in groups:
            run_group(group(), given.rounds, results)
    imports(given.rounds, results)
    if given.wheel:
        size_mib = given.wheel.stat().st_size / (1 << 20)
        results.tables.append(Table("Wheel", ["", "MiB"], [[given.wheel.name, f"{size_mib:.1f}"]]))
    finish(results, given.out)


if __name__ == "__main__":
    main()
