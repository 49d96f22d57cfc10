"""Random batches of rows by key, compared with other ways to keep tensors."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import torch

from _measure import Times, ratio, take_turns
from _peers import ALL, Peer, Read, disk_bytes, fresh
from _report import Results, Table, arguments, environment, finish, us, version, work_folder
from _rows import BATCH, batches, check, mapped_rows

WIDTH = 768
_MODULES = {"pylance": "lance"}
_TARGETS = {"torchcachex": 200.0, "datasets (torch format)": 100.0, "LMDB": 5.0}


class _Loaded:
    """A peer with its rows on disk."""

    def __init__(self, peer: Peer, folder: Path, rows: torch.Tensor) -> None:
        self.peer = peer
        self.rows = rows[: peer.most_rows] if peer.most_rows is not None else rows
        own = fresh(folder / peer.package)
        begin_s = time.perf_counter()
        peer.load(own, self.rows)
        self.load_s = time.perf_counter() - begin_s
        self.disk_bytes = disk_bytes(own)
        self.read: Read = peer.open(own)
        self.numbers = batches(len(self.rows))
        check(peer.name, self, lambda n: self.rows[self.numbers[n]])

    def __call__(self, number: int) -> torch.Tensor:
        return self.read(self.numbers[number % len(self.numbers)])


def _installed(package: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(package, package)) is not None


def _table(loaded: dict[str, _Loaded], times: dict[str, Times], results: Results) -> None:
    ours = times["tensorcask"]
    table = Table(
        f"{BATCH} random rows of {WIDTH} float32 as a tensor",
        [
            "", "version", "rows", "median µs", "quartiles µs", "× tensorcask", "load s", "load µs a row", "disk MiB",
            "disk × data",
        ],  # fmt: skip
        note="The load includes what makes the data readable by another process, but not a wait for the disk.",
    )
    for name, found in sorted(times.items(), key=lambda item: item[1].median_s):
        one, (low, high) = loaded[name], found.quartiles_s
        label = f"{name} ({one.peer.note})" if one.peer.note else name
        table.rows.append([
            label, version(one.peer.package) or "", f"{len(one.rows):,}", us(found.median_s), f"{us(low)}–{us(high)}",
            str(ratio(found, ours)), f"{one.load_s:.2f}", f"{one.load_s / len(one.rows) * 1e6:.1f}",
            f"{one.disk_bytes / (1 << 20):.1f}", f"{one.disk_bytes / (one.rows.numel() * 4):.2f}",
        ])  # fmt: skip
        results.bars.append((name, found.median_s * 1e6))
        results.raw_s[name] = found.rounds_s
    results.tables.append(table)


def _targets(times: dict[str, Times], results: Results) -> None:
    for name, found in times.items():
        if name != "tensorcask":
            results.at_least(f"{name} takes", ratio(found, times["tensorcask"]).median, _TARGETS.get(name, 1.0))


def main() -> None:
    parser = arguments(__doc__ or "", rows=100_000, rounds=20)
    parser.add_argument("--only", nargs="*", help="names of packages, besides tensorcask")
    parser.add_argument("--name", default="peers", help="name of the section and its files, which starts with `peers`")
    given = parser.parse_args()
    if not given.name.startswith("peers"):
        parser.error(f"--name {given.name}: expected a name that starts with `peers`")
    torch.set_num_threads(1)
    results = Results(given.name, f"Peers, {given.rows:,} rows", {"rows": given.rows, "rounds": given.rounds}, environment())
    results.bars_title = f"Microseconds for {BATCH} random rows (less is better)"
    loaded: dict[str, _Loaded] = {}
    with work_folder(given.dir) as folder:
        rows = mapped_rows(folder / "rows", given.rows, WIDTH)
        for make in ALL:
            peer = make(WIDTH)
            if given.only is not None and peer.package not in ("tensorcask", *given.only):
                continue
            if not _installed(peer.package):
                results.left_out.append(f"{peer.name}: {peer.package} is not installed")
                continue
            loaded[peer.name] = _Loaded(peer, folder, rows)
            print(f"{peer.name}: {len(loaded[peer.name].rows):,} rows in {loaded[peer.name].load_s:.2f} s", flush=True)
        times = take_turns(loaded, given.rounds)
    _table(loaded, times, results)
    _targets(times, results)
    finish(results, given.out)


if __name__ == "__main__":
    main()
