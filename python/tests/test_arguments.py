"""Arguments of calls that are no tensors: all of them count."""

from __future__ import annotations

import enum
from collections import namedtuple
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

import tensorcask as tc


class Flags(enum.Flag, boundary=enum.KEEP):  # type: ignore[call-arg]
    """Values without names of their own."""

    A = 1


class Shown(int):
    """A number that shows itself as another."""

    def __repr__(self) -> str:
        return "one"


Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Setting:
    """Plain values."""

    scale: float
    name: str = "a"


def seen(*args: Any, **kwargs: Any) -> Any:
    """A wrapped function, and the arguments that it was computed with."""
    calls: list[Any] = []

    def function(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append((args, kwargs))
        return x * 1

    return tc.cache(function, module_id="seen", version="1"), calls


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Flags(8), Flags(16)), (Shown(2), Shown(3)), (1, True), (1, 1.0), ("1", 1), (0.0, -0.0), (b"a", "a"), (None, "None"),
        (Point(1, 2), (1, 2)), (Setting(1.0), Setting(2.0)), (PurePosixPath("a"), PureWindowsPath("a")),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ([1, 2], (1, 2)), (torch.float16, torch.bfloat16), (1 << 70, 1 << 71),
        ({"a.b": 1}, {"a": {"b": 1}}), (float("nan"), 0.0), (range(3), range(4)), (slice(1), slice(2)), ([], {}),
        ({"x": [1.5]}, {"x": [2.5]}), (1j, 2j), (np.float32(1), np.float64(1)),
    ],
)  # fmt: skip
def test_arguments_that_differ_are_computed(one: Any, other: Any) -> None:
    cached, calls = seen()
    x = torch.ones(3, 2)
    for value in (one, other, one, other):
        cached(x, value, ids=[1, 2, 3])
        cached(x, key=value)
    assert len(calls) == 4, calls
    assert repr(calls[0][0][0]) == repr(one) and repr(calls[2][0][0]) == repr(other)
    assert type(calls[1][1]["key"]) is type(one)


def test_tensors_within_arguments_are_batched() -> None:
    cached, calls = seen()
    x = torch.arange(6.0).reshape(3, 2)
    tree = {"a.0": x + 1, "a": [x + 2, (x + 3, "plain", None)], "shared": tc.shared(torch.ones(5))}
    cached(x, tree, ids=[1, 2, 3])
    cached(x, tree, ids=[1, 2, 3])
    cached(torch.cat([x, x[:1]]), {**tree, "a.0": torch.cat([x + 1, x[:1]]), "a": [torch.cat([x + 2, x[:1]]),
           (torch.cat([x + 3, x[:1]]), "plain", None)]}, ids=[1, 2, 3, 4])  # fmt: skip
    assert len(calls) == 2
    (again,) = calls[1][0]
    assert torch.equal(again["a.0"], x[:1]) and torch.equal(again["a"][1][0], x[:1]) and again["a"][1][1:] == ("plain", None)
    assert again["shared"].shape == (5,)
    cached(x, {**tree, "shared": tc.shared(torch.zeros(5))}, ids=[1, 2, 3])
    assert len(calls) == 3


@pytest.mark.parametrize("view", ["negative", "big endian", "read only", "strided"])
def test_arrays_of_any_layout(view: str) -> None:
    cached, calls = seen()
    array = np.arange(12.0).reshape(3, 4)
    array = {"negative": array[::-1], "big endian": array.astype(">f8"), "read only": np.broadcast_to(array, (3, 4)),
             "strided": array[:, ::2]}[view]  # fmt: skip
    x = torch.ones(3, 1)
    cached(x, array)
    cached(x, array.copy())
    assert len(calls) == 1 and np.array_equal(calls[0][0][0], array)


def test_arguments_that_cannot_count_are_refused() -> None:
    cached, calls = seen()
    x = torch.ones(3, 1)
    for value in (object(), lambda: 1, np.array(["a"]), {1: x}, type("Local", (), {})):
        with pytest.raises(tc.InvalidError):
            cached(x, value)
    with pytest.raises(tc.InvalidError, match="reserved"):
        cached(x, **{"python:arguments": 1})
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(tc.InvalidError, match="levels"):
        cached(x, deep)
    assert not calls and len(cached) == 0
