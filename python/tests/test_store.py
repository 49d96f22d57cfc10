"""Stores: rows under keys, put and read as tensors."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorcask as tc

ROWS = torch.arange(40, dtype=torch.float32).reshape(10, 4)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with tc.open(tmp_path, "rows", format="torch") as store:
        yield store


@pytest.mark.parametrize(
    "keys",
    [torch.arange(10), torch.arange(10, dtype=torch.int32), list(range(10)), tuple(range(10)), range(10),
     [f"k{i}" for i in range(10)], [b"k%d" % i for i in range(10)], {f"k{i}": i for i in range(10)}.keys()],
)  # fmt: skip
def test_rows_come_back_in_the_order_of_the_keys(store: Any, keys: Any) -> None:
    store.put(keys, ROWS)
    listed = list(keys.tolist() if isinstance(keys, torch.Tensor) else keys)
    assert torch.equal(store.take(keys), ROWS)
    assert torch.equal(store.take(listed[::-1]), ROWS.flip(0))
    assert torch.equal(store.take([listed[3], listed[3]]), ROWS[[3, 3]])
    assert len(store) == 10 and listed[0] in store
    assert torch.equal(store[listed[2]], ROWS[2])
    assert sorted(store, key=str) == sorted(listed, key=str)


def test_missing_keys_are_zeros_in_get_and_an_error_in_take(store: Any) -> None:
    store.put([1, 2], ROWS[:2])
    rows, found = store.get([2, 7, 1])
    assert found.tolist() == [True, False, True] and found.dtype == torch.bool
    assert torch.equal(rows, torch.stack([ROWS[1], torch.zeros(4), ROWS[0]]))
    with pytest.raises(KeyError) as raised:
        store.take(torch.tensor([2, 7, 8]))
    assert raised.value.keys == [7, 8] and raised.value.count == 2
    assert str(raised.value) == "2 keys are not in the store: 7, 8"
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), tc.KeyMissingError)
    with pytest.raises(tc.KeyMissingError):
        store[7]


def test_an_empty_store_has_no_rows_and_says_so(store: Any) -> None:
    rows, found = store.get([1])
    assert rows == [None] and found.tolist() == [False]
    assert len(store) == 0 and store.keys() == [] and bool(store)


def test_empty_batches(store: Any) -> None:
    store.put([], ROWS[:0])
    store.put(torch.arange(3), ROWS[:3])
    assert store.take(torch.arange(0)).shape == (0, 4)
    assert store.take([]).shape == (0, 4)


def test_newest_row_wins_and_deletes_delete(store: Any) -> None:
    store.put(["a", "b"], ROWS[:2])
    store["a"] = ROWS[5]
    assert torch.equal(store.take(["a", "b"]), ROWS[[5, 1]])
    assert store.delete(["a", "c"]) == 1
    assert store.contains(["a", "b"]).tolist() == [False, True]
    del store["b"]
    with pytest.raises(KeyError):
        del store["b"]
    assert len(store) == 0


DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
]  # fmt: skip


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2 if name == "bool" else 256, (6, 3 * width), dtype=torch.uint8)
    rows = raw.view(dtype)
    with tc.open(tmp_path, name) as store:
        store.put(torch.arange(6), rows)
        store.flush()
    with tc.open(tmp_path, name, mode="r") as store:
        read = store.take(torch.tensor([5, 0]))
    assert read.dtype == dtype and torch.equal(read.view(torch.uint8), raw[[5, 0]])


def test_rows_of_any_layout(tmp_path: Path) -> None:
    wide = torch.randn(4, 6, 8)
    complex_rows = torch.randn(4, 3, dtype=torch.complex64)
    cases = {"transposed": wide.transpose(1, 2), "strided": wide[:, ::2], "expanded": wide[:, :1].expand(4, 6, 8),
             "conjugated": complex_rows.conj(), "negated": complex_rows.conj().imag, "needs grad": wide.requires_grad_()}
    for name, rows in cases.items():
        with tc.open(tmp_path, name) as store:
            store.put(range(4), rows)
            assert torch.equal(store.take(range(4)), rows.detach().resolve_conj().resolve_neg()), name


def test_scalars_and_zero_sized_rows(store: Any, tmp_path: Path) -> None:
    store.put(["s1", "s2"], torch.tensor([1.5, 2.5]))
    assert store.take(["s2", "s1"]).tolist() == [2.5, 1.5]
    assert store["s1"].shape == ()
    with tc.open(tmp_path, "zero") as zero:
        zero.put(["z1", "z2"], torch.empty(2, 0, 3))
        assert zero.take(["z1", "z2"]).shape == (2, 0, 3)


def test_trees(store: Any) -> None:
    rows = {"hidden": ROWS[:3], "pair": (ROWS[3:6, :2], torch.tensor([1, 2, 3])), "none": None}
    store.put(["a", "b", "c"], {name: rows[name] for name in ("hidden", "pair")})
    read = store.take(["c", "a"])
    assert torch.equal(read["hidden"], ROWS[[2, 0]])
    assert isinstance(read["pair"], tuple) and read["pair"][1].tolist() == [3, 1]
    read, found = store.get(["a", "?"])
    assert found.tolist() == [True, False] and read["pair"][1].tolist() == [1, 0]
    one = store["b"]
    assert torch.equal(one["hidden"], ROWS[1]) and one["pair"][1].item() == 2


def test_values_that_are_no_tensors(store: Any) -> None:
    value = {"text": "x", "number": 3, "float": 0.5, "flag": True, "none": None, "bytes": b"\0\1", "list": [1, [2.0]]}
    store["a"] = value
    assert store["a"] == value
    with pytest.raises(tc.InvalidError, match="type object"):
        store["b"] = object()
    with pytest.raises(tc.InvalidError, match="64 bits"):
        store["b"] = 1 << 70
    assert "b" not in store
    read, found = store.get(["a", "b"])
    assert read["text"] == ["x", None] and read["list"] == [[1, [2.0]], None] and found.tolist() == [True, False]


def test_ragged_rows_are_lists(store: Any) -> None:
    rows = [torch.randn(length, 4) for length in (3, 1, 5)]
    store.put(["a", "b", "c"], rows)
    read = store.take(["c", "a"])
    assert isinstance(read, list) and all(torch.equal(x, y) for x, y in zip(read, [rows[2], rows[0]]))
    read, found = store.get(["b", "?"])
    assert read[1] is None and found.tolist() == [True, False]


def test_the_shapes_of_a_store_decide_what_is_returned(store: Any) -> None:
    store.put(["a", "b"], ROWS[:2])
    assert isinstance(store.take(["a", "b"]), torch.Tensor)
    store.put(["c"], ROWS[:1, :2])
    assert isinstance(store.take(["a", "b"]), list) and store.take(["c"])[0].shape == (2,)
    store.delete(["c"])


def test_rows_of_several_structures_in_one_store(store: Any) -> None:
    store.put(["a", "b"], ROWS[:2])
    assert store.take(["a", "b"]).shape == (2, 4)
    store.put(["c"], [{"x": ROWS[2]}])
    store["d"] = 7
    read, _ = store.get(["a", "c", "d"])
    assert torch.equal(read[0], ROWS[0]) and torch.equal(read[1]["x"], ROWS[2]) and read[2] == 7
    assert torch.equal(store.take(["b", "a"]), ROWS[[1, 0]])
    assert {entry["rows"] for entry in store.schemas()} == {2, 1}


def test_out_is_filled(store: Any) -> None:
    store.put(torch.arange(10), ROWS)
    out = torch.full((3, 4), -1.0)
    assert store.take(torch.tensor([9, 0, 4]), out=out) is out
    assert torch.equal(out, ROWS[[9, 0, 4]])
    strided = torch.zeros(4, 3).t()
    store.take([1, 2, 3], out=strided)
    assert torch.equal(strided, ROWS[1:4])
    with pytest.raises(tc.MismatchError, match=r"F32 \[3, 4\]"):
        store.take([1, 2, 3], out=torch.zeros(3, 5))
    with pytest.raises(tc.MismatchError, match="float64"):
        store.take([1, 2, 3], out=torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(tc.InvalidError, match="requires a gradient"):
        store.take([1, 2, 3], out=torch.zeros(3, 4, requires_grad=True))


@pytest.mark.parametrize("left_bytes", [0, 8])
def test_tensors_whose_storage_was_shrunk_are_refused(store: Any, left_bytes: int) -> None:
    store.put(range(10), ROWS)
    rows, out, keys = torch.ones(10, 4), torch.ones(10, 4), torch.arange(10)
    for tensor in (rows, out, keys):
        tensor.untyped_storage().resize_(left_bytes)
    for call in (lambda: store.put(range(10), rows), lambda: store.take(range(10), out=out), lambda: store.take(keys)):
        with pytest.raises(tc.InvalidError):
            call()
    assert torch.equal(store.take(range(10)), ROWS)


def test_what_is_read_is_the_callers_own(store: Any) -> None:
    store.put([1], ROWS[:1])
    store.take([1]).fill_(99)
    read = store.take([1])
    assert torch.equal(read, ROWS[:1])
    read.requires_grad_().sum().backward()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([-1], "from 0 to"), (torch.tensor([0, -5]), "key 1 is -5"), ([1, "a"], "key 1 is of type str"),
        (["a", 1], "key 1 is of type int"), ([True], "key 0 is of type bool"), ("abc", "one key"), (5, "one key"),
        (torch.ones(2, 2, dtype=torch.int64), r"shape \[2, 2\]"), (torch.ones(2), "float32"), ([1.5], "type float"),
        ([1 << 64], "from 0 to"), (object(), "type object"), (torch.ones(2, dtype=torch.bool), "bool"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_used(store: Any, keys: Any, message: str) -> None:
    for call in (store.get, store.take, store.contains, store.delete, lambda keys: store.put(keys, ROWS[:2])):
        with pytest.raises(tc.InvalidError, match=message):
            call(keys)
    assert len(store) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:3], "3 rows were passed for 2 keys"), (torch.tensor(1.0), "no dimensions"), ([ROWS[0]], "1 rows"),
        ({"a": ROWS[:2], "b": ROWS[:1]}, "1 rows"), (3, "type int"), (object(), "type object"),
        (torch.empty(2, device="meta"), "meta"), (torch.eye(2, dtype=torch.complex128), "complex128"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_put(store: Any, rows: Any, message: str) -> None:
    with pytest.raises(tc.InvalidError, match=message):
        store.put([1, 2], rows)
    assert len(store) == 0


def test_keys_of_one_kind(store: Any) -> None:
    store.put([1], ROWS[:1])
    with pytest.raises(tc.InvalidError):
        store.put(["a"], ROWS[:1])
    with pytest.raises(tc.InvalidError):
        "a" in store


def test_prefixes_and_ranges(store: Any) -> None:
    keys = [f"{part}/{at:03d}" for part in ("train", "test") for at in range(5)]
    store.put(keys, torch.zeros(10, 2))
    store.flush()
    assert store.keys(prefix="train/") == keys[:5]
    assert store.keys(start="test/003", stop="train/001") == ["test/003", "test/004", "train/000"]
    with pytest.raises(tc.InvalidError, match="give one of them"):
        store.keys(prefix="a", start="b")


def test_modes(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        tc.open(tmp_path, "nothing", mode="r")
    assert raised.value.errno == 2 and not (tmp_path / "nothing").exists()
    with tc.open(tmp_path, "rows") as store:
        store.put([1], ROWS[:1])
    with tc.open(tmp_path, "rows", mode="r") as store:
        assert store.mode == "r" and torch.equal(store.take([1]), ROWS[:1])
        for call in (lambda: store.put([2], ROWS[:1]), lambda: store.delete([1]), store.flush):
            with pytest.raises(tc.ReadOnlyError, match='mode="a"'):
                call()
    with pytest.raises(tc.InvalidError, match="mode"):
        tc.open(tmp_path, "rows", mode="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option sorted"):
        tc.open(tmp_path, "rows", sorted=True)
    with pytest.raises(TypeError, match="segment_bytes"):
        tc.open(tmp_path, "rows", segment_bytes="large")
    with pytest.raises(tc.InvalidError):
        tc.open(tmp_path, "../rows")


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = tc.open(tmp_path, "rows")
    store.put([1], ROWS[:1])
    store.close()
    store.close()
    assert store.closed
    with pytest.raises(tc.InvalidError, match="closed"):
        store.take([1])
    with pytest.raises(tc.InvalidError, match="closed"):
        store.put([1], ROWS[:1])


def test_several_writers_take_lanes_of_their_own(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows") as one, tc.open(tmp_path, "rows") as two:
        one.put([1], ROWS[:1])
        two.put([2], ROWS[1:2])
        one.flush(), two.flush()
        one.refresh()
        assert torch.equal(one.take([1, 2]), ROWS[:2])
        with pytest.raises(tc.LockedError):
            tc.open(tmp_path, "rows", lane=0)


def test_options_reach_the_engine(tmp_path: Path) -> None:
    with tc.open(tmp_path, "packed", codec="shuffle-zstd:5", store_as=torch.float16, durability="buffered") as store:
        store.put(range(10), ROWS)
        assert store.take([3]).dtype == torch.float16
        assert "shuffle-zstd" in store.schemas()[0]["schema"] or store.stats()["keys"] == 10
    with tc.open(tmp_path, "full", max_rows=64, eviction="stop") as store:
        store.put(range(32), torch.zeros(32, 2))
        store.put(range(32, 64), torch.zeros(32, 2))
        with pytest.raises(tc.FullError):
            store.put([99], torch.zeros(1, 2))
            store.flush()


def test_pickles_as_path_and_options(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows", mode="a", segment_rows=100) as store:
        store.put(range(10), ROWS)
        copy = pickle.loads(pickle.dumps(store))
        assert (copy.path, copy.mode, copy.format) == (store.path, "a", store.format)
        assert torch.equal(copy.take([4]), ROWS[4:5])
        # It writes in a lane of its own.
        copy.put([77], ROWS[:1])
        copy.close()
        store.refresh()
        assert torch.equal(store.take([77]), ROWS[:1])


def read_in_child(store: Any, keys: list[int], results: Any) -> None:
    try:
        results.put(("rows", store.take(keys).tolist()))
        store.put([1000], torch.zeros(1, 4))
        results.put(("written", None))
    except tc.TensorcaskError as error:
        results.put((type(error).__name__, str(error)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_read_with_handles_of_their_own(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with tc.open(tmp_path, "rows") as store:
        # What was put is read by children without a flush.
        store.put(range(10), ROWS)
        results = context.Queue()
        child = context.Process(target=read_in_child, args=(store, [9, 3], results))
        child.start()
        assert results.get(timeout=60) == ("rows", ROWS[[9, 3]].tolist())
        # A forked handle must not write; a pickled one opens a lane.
        assert results.get(timeout=60)[0] == ("ForkedError" if method == "fork" else "written")
        child.join(60)
        assert child.exitcode == 0
        store.put([55], ROWS[:1])
        assert torch.equal(store.take([55]), ROWS[:1])


def test_threads_share_a_store(store: Any) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(20):
                keys = torch.arange(10) + 100 * number + 10_000 * round_
                store.put(keys, ROWS + number)
                assert torch.equal(store.take(keys), ROWS + number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors and len(store) == 6 * 20 * 10


def test_closing_while_others_read(tmp_path: Path) -> None:
    store = tc.open(tmp_path, "rows")
    store.put(range(10), ROWS)
    stopped = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stopped.is_set():
            try:
                store.take(torch.arange(10))
            except tc.InvalidError as error:
                seen.append(str(error))
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    [thread.start() for thread in threads]
    store.close()
    [thread.join(30) for thread in threads]
    stopped.set()
    assert len(seen) == 4


def test_damage_is_an_error_and_never_a_miss(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows") as store:
        store.put(range(1000), torch.randn(1000, 64))
    segment = next(Path(tmp_path, "rows", "segments").glob("*.arrow"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 3] ^= 0xFF
    segment.write_bytes(data)
    with tc.open(tmp_path, "rows", mode="r") as store:
        damaged = 0
        for key in range(1000):
            try:
                store.take([key])
            except tc.CorruptError:
                damaged += 1
        assert damaged == 1
        with pytest.raises(tc.CorruptError):
            store.get(range(1000))
        report = store.verify()
        assert not report["clean"] and len(report["damage"]) == 1


def test_a_store_that_lost_a_file_warns(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows") as store:
        store.put(range(1000), torch.randn(1000, 64))
    segment = next(Path(tmp_path, "rows", "segments").glob("*.arrow"))
    os.truncate(segment, 100)
    with pytest.warns(tc.TensorcaskWarning, match="opened without 1 damaged"):
        tc.open(tmp_path, "rows").close()


def test_a_store_of_a_newer_release(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows") as store:
        store.put(range(10), ROWS)
    with pytest.raises((tc.VersionError, tc.CorruptError)):
        segment = next(Path(tmp_path, "rows", "segments").glob("*.arrow"))
        data = segment.read_bytes()
        for old, new in ((b'"format":3', b'"format":9'), (b'"format":2', b'"format":9')):
            data = data.replace(old, new)
        segment.write_bytes(data)
        tc.open(tmp_path, "rows", mode="r", recovery="strict")


def test_an_unwritable_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        blocked = Path("/proc/tensorcask")
    else:
        blocked = tmp_path / "blocked"
        blocked.mkdir(mode=0o500)
    with pytest.raises(OSError) as raised:
        tc.open(blocked, "rows")
    assert isinstance(raised.value, tc.StoreIOError) and raised.value.filename is not None


def test_statistics_and_maintenance(store: Any) -> None:
    store.put(range(10), ROWS)
    store.put(range(5), ROWS[:5])
    store.flush()
    assert store.stats()["keys"] == 10 and store.verify()["clean"]
    assert isinstance(store.compact(dry_run=True), dict) and isinstance(store.compact(sort=True), dict)
    assert isinstance(store.preload(1 << 20), dict)
    assert torch.equal(store.take(range(10)), ROWS)
    assert repr(store).startswith("<tensorcask.Store")


def test_digests_are_stable_and_differ() -> None:
    assert tc.digest(["a", b"a", "b"]) == [
        "a96faf705af16834e6c632b61e964e1f", "a96faf705af16834e6c632b61e964e1f", "4b2212e31ac97fd4575a0b1c44d8843f",
    ]  # fmt: skip
    assert len(set(tc.digest([torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64)]))) == 3
