"""Caches across processes and threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_nets import Net, batch, net
from child_environment import environment
from torch import nn

import tensorcask as tc

PROGRAM = """
import json, sys, torch, tensorcask as tc
from cache_nets import batch, net
module = net()
def square(x):
    return x ** 2
cached = tc.cache(module, "cache")
function = tc.cache(square, "cache")
@tc.cache("cache", module_id="half", freeze=True)
class Half(torch.nn.Module):
    def __init__(self, divisor):
        super().__init__()
        self.divisor = divisor
    def forward(self, x):
        return x / self.divisor
half = Half(2)
rows = [cached(batch(), ids=["a", "b", "c", "d"]), cached(batch()), function(batch()), half(batch())]
for one in (cached, function, half):
    one.flush()
print(json.dumps({"misses": [cached.stats()["misses"], function.stats()["misses"], half.stats()["misses"]],
                  "rows": [row.tolist() for row in rows], "ids": [cached.module_id, function.module_id]}))
"""


def test_a_new_process_hits(run_python: Any, folder: str) -> None:
    first = run_python(PROGRAM)
    assert first["misses"] == [8, 4, 4] and first["ids"] == ["Net", "program.square"]
    second = run_python(PROGRAM)
    assert second["misses"] == [0, 0, 0] and second["rows"] == first["rows"]
    # So does a program that imports it as a module, and so does this process.
    imported = run_python("import program\n", name="other.py")
    assert imported["misses"] == [0, 0, 0]
    here = tc.cache(net(), folder)
    assert torch.equal(here(torch.zeros(4, 3), ids=["a", "b", "c", "d"]), torch.tensor(first["rows"][0]))


def _start(tmp_path: Path, code: str, **env: str) -> subprocess.Popen[str]:
    path = tmp_path / "child.py"
    path.write_text(code)
    return subprocess.Popen(
        [sys.executable, path.name], cwd=tmp_path, env=environment(**env), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _result(child: subprocess.Popen[str]) -> Any:
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors[-4000:]
    return json.loads(out.strip().splitlines()[-1])


CHILD = """
import json, os, sys, time, torch, tensorcask as tc
torch.set_num_threads(1)
computed = []
def slow(x):
    time.sleep(0.02 * len(x))
    computed.append(len(x))
    return x * 2
cached = tc.cache(slow, "cache", module_id="slow", version="1", source=False)
cached(torch.ones(1, 1), ids=[1000 + int(os.environ["NUMBER"])])   # Opens the store.
computed.clear()
open(f"ready{os.environ['NUMBER']}", "w").close()
while not os.path.exists("go"):
    time.sleep(0.005)
x = torch.arange(40.0).reshape(40, 1)
ok = all(torch.equal(cached(x[at:at + 10], ids=list(range(at, at + 10))), x[at:at + 10] * 2) for at in (0, 10, 20, 30))
cached.flush()
print(json.dumps({"computed": sum(computed), "ok": ok, "folder": cached.folder, "hits": cached.stats()["hits"]}))
"""


def test_processes_compute_a_sample_once_and_write_their_own_lanes(tmp_path: Path) -> None:
    children = [_start(tmp_path, CHILD, NUMBER=str(number)) for number in range(2)]
    deadline_s = time.monotonic() + 60
    while not all((tmp_path / f"ready{number}").exists() for number in range(2)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    results = [_result(child) for child in children]
    assert all(result["ok"] for result in results)
    assert sum(result["computed"] for result in results) == 40
    assert results[0]["folder"] == results[1]["folder"]
    assert sum(result["computed"] + result["hits"] for result in results) == 80


def test_a_rank_writes_its_own_lane(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    with tc.cache(net(), folder) as cached:
        cached(batch())
    assert {path.name[:5] for path in Path(folder).rglob("*.arrow")} == {"0002-"}
    monkeypatch.setenv("RANK", "3")
    with tc.cache(net(), folder) as cached:
        cached(batch(8))
        assert cached.stats()["hits"] == 4
    assert {path.name[:5] for path in Path(folder).rglob("*.arrow")} == {"0002-", "0003-"}


def test_writer_rank(folder: str) -> None:
    reader = tc.cache(net(), folder, rank=1, world_size=2, writer_rank=0)
    reader(batch())
    assert len(reader) == 0 and reader.stats()["not_kept"] == 4
    writer = tc.cache(net(), folder, rank=0, world_size=2, writer_rank=0)
    writer(batch())
    reader(batch())
    assert reader.stats()["hits"] == 4
    with pytest.raises(tc.InvalidError, match="rank 5"):
        tc.cache(net(), folder, rank=0, world_size=2, writer_rank=5)
    with pytest.raises(tc.InvalidError, match="world_size"):
        tc.cache(net(), folder, rank=0)


def test_threads_compute_a_sample_once(folder: str) -> None:
    computed: list[int] = []

    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        computed.extend(x[:, 0].int().tolist())
        return x * 2

    cached = tc.cache(slow, folder)
    x = torch.arange(16.0).reshape(16, 1)
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for at in range(start, start + 16, 4):
                rows = x[[(at + step) % 16 for step in range(6)]]
                assert torch.equal(cached(rows), rows * 2)
        except BaseException as error:  # noqa: BLE001 - passed on below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 16, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and sorted(computed) == list(range(16))


def test_threads_under_autocast_of_their_own(folder: str) -> None:
    cached = tc.cache(nn.Linear(3, 2), folder, freeze=True)
    expected = {dtype: None for dtype in (torch.float32, torch.bfloat16)}
    results: dict[torch.dtype, list[torch.Tensor]] = {dtype: [] for dtype in expected}

    def work(dtype: torch.dtype) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            for start in range(20):
                results[dtype].append(cached(batch(start=start)))

    threads = [threading.Thread(target=work, args=(dtype,)) for dtype in [*expected, *expected]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(row.dtype == dtype for dtype, rows in results.items() for row in rows)
    assert all(len(rows) == 40 for rows in results.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("place", ["folder", "memory"])
def test_a_forked_child_reads_and_writes(folder: str, place: str) -> None:
    module = net()
    cached = tc.cache(module, folder if place == "folder" else None)
    cached(batch(), ids=[0, 1, 2, 3])
    cached.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        report: dict[str, Any] = {}
        try:
            rows = cached(batch(6), ids=[0, 1, 2, 3, 4, 5])
            report = {"same": torch.allclose(rows, net()(batch(6))), **cached.stats()}
            cached.close()
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            report = {"error": repr(error)}
        os.write(write_end, json.dumps(report).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        report = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert "error" not in report and report["same"]
    assert report["hits"] == (4 if place == "folder" else 0)
    # The parent goes on, and in a folder finds what the child wrote.
    before = module.samples
    cached(batch(6), ids=[0, 1, 2, 3, 4, 5])
    assert module.samples - before == (0 if place == "folder" else 2)


class Features(torch.utils.data.Dataset[torch.Tensor]):
    """Reads features in workers."""

    def __init__(self, cached: nn.Module) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return 8

    def __getitem__(self, at: int) -> torch.Tensor:
        row: torch.Tensor = self.cached(batch(1, start=at), ids=[at])[0]
        return row


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(folder: str, start: str) -> None:
    cached = tc.cache(net(), folder)
    cached(batch(8), ids=list(range(8)))
    cached.flush()
    loader = torch.utils.data.DataLoader(Features(cached), batch_size=4, num_workers=1, multiprocessing_context=start)
    rows = torch.cat(list(loader))
    torch.testing.assert_close(rows, net()(batch(8)))


def test_two_handles_of_one_process_share_outputs(folder: str) -> None:
    one, two = tc.cache(net(), folder), tc.cache(net(), folder)
    one(batch())
    two(batch())
    assert two.stats()["hits"] == 4
    one.close()
    two(batch(start=4))
    assert len(two) == 8


def test_read_only(folder: str) -> None:
    writer = tc.cache(net(), folder)
    writer(batch())
    writer.flush()
    reader = tc.cache(net(), folder, read_only=True)
    reader(batch(6))
    assert reader.stats()["hits"] == 4 and reader.stats()["not_kept"] == 2
    assert len(writer) == 4


UNWRITABLE = """
import json, os, warnings, torch, tensorcask as tc
from cache_nets import batch, net
tc.cache(net())(batch())   # Imports everything while the process may read all files.
with tc.cache(net(), "kept") as writer:
    writer(batch())
for name in ("kept", "."):
    os.chmod(name, 0o755)
for root, folders, files in os.walk("kept"):
    for name in folders + files:
        os.chmod(os.path.join(root, name), 0o755)
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
else:
    os.chmod(writer_folder, 0o555)
report = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cached = tc.cache(net(), "kept")
    cached(batch(6))
    report.update(hits=cached.stats()["hits"], not_kept=cached.stats()["not_kept"])
    report["warnings"] = [str(warning.message) for warning in caught if warning.category is tc.TensorcaskWarning]
    report["file"] = [os.path.basename(warning.filename) for warning in caught]
print(json.dumps(report))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes another user's rights")
def test_a_folder_that_cannot_be_written_is_read(run_python: Any, tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(0o711)
    report = run_python(UNWRITABLE)
    assert report["hits"] == 4 and report["not_kept"] == 2
    assert len(report["warnings"]) == 1 and "read only" in report["warnings"][0]
    # The warning points to the user's code.
    assert set(report["file"]) == {"program.py"}


FULL = """
import json, resource, warnings, torch, tensorcask as tc
def wide(x):
    return x.repeat(1, 5000)
handles = {policy: tc.cache(wide, policy, on_store_error=policy) for policy in ("warn", "raise")}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
reports = {}
for policy, cached in handles.items():
    report = reports[policy] = {"ok": True, "error": None, "flush": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for at in range(8):
                x = torch.arange(48.0).reshape(16, 3) + 100 * at
                report["ok"] &= torch.equal(cached(x), wide(x))
        except tc.TensorcaskError as error:
            report["error"] = type(error).__name__
        report["warnings"] = len([warning for warning in caught if warning.category is tc.TensorcaskWarning])
        report["not_kept"] = cached.stats()["not_kept"]
        try:
            cached.flush()
        except tc.TensorcaskError as error:
            report["flush"] = type(error).__name__
print(json.dumps(reports))
"""


def test_a_full_disk_is_a_warning_or_an_error(run_python: Any) -> None:
    reports = run_python(FULL)
    warned, raised = reports["warn"], reports["raise"]
    assert warned["ok"] and raised["ok"] and warned["flush"] and raised["flush"]
    assert warned["error"] is None and warned["warnings"] >= 1 and warned["not_kept"] > 0
    assert raised["error"] == "StoreIOError"


def test_a_dropped_handle_leaves_nothing_open(folder: str) -> None:
    cached = tc.cache(Net().requires_grad_(False), folder)
    cached(batch())
    native = cached._tensorcask_handle()._native
    import weakref

    gone = weakref.ref(native)
    del cached, native
    assert gone() is None
