"""Cached and decorated functions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import cache_nets
import pytest
import torch
from cache_nets import batch
from torch import nn

import tensorcask as tc


def test_decorated_functions(folder: str) -> None:
    calls = []

    @tc.cache(folder, module_id="double")
    def double(x: torch.Tensor) -> torch.Tensor:
        """Doubles."""
        calls.append(len(x))
        return x * 2

    assert double.__name__ == "double" and double.__doc__ == "Doubles."
    assert torch.equal(double(batch()), batch() * 2) and torch.equal(double(batch()), batch() * 2)
    assert torch.equal(double(torch.zeros(2, 3), ids=["a", "b"]), torch.zeros(2, 3))
    assert calls == [4, 2]
    assert double.stats()["hits"] == 4 and double.module_id == "double" and len(double) in (2, 4, 6)
    assert torch.equal(double.unwrap()(batch()), batch() * 2)
    assert "CachedFunction" in repr(double) and "double" in repr(double)


def test_decorator_in_memory() -> None:
    calls = []

    @tc.cache()
    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * 2

    double(batch())
    double(batch())
    assert calls == [4] and double.folder is None


def test_names_that_are_defined_after_the_decorated_function(folder: str) -> None:
    @tc.cache(folder)
    def embed(x: torch.Tensor) -> torch.Tensor:
        return module(x)

    module = nn.Linear(3, 2).requires_grad_(False)
    assert torch.equal(embed(batch()), module(batch()))
    with torch.no_grad():
        module.bias.add_(1)
    assert torch.equal(embed(batch()), module(batch()))


def test_errors_of_decorators_show_at_once(folder: str) -> None:
    with pytest.raises(TypeError, match="no option"):
        tc.cache(folder, modul_id="x")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="coroutine"):

        @tc.cache(folder)
        async def embed(x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match="generator"):

        @tc.cache(folder)
        def batches(x: torch.Tensor) -> Iterator[torch.Tensor]:
            yield x

    with pytest.raises(TypeError, match="no nn.Module"):

        @tc.cache(folder)
        class Plain:
            pass


def test_decorated_methods_say_what_to_do(folder: str) -> None:
    class Encoder:
        @tc.cache(folder)
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match="decorate the class|bound method"):
        Encoder().encode(batch())


def test_bound_methods_of_an_instance(folder: str) -> None:
    class Encoder:
        def __init__(self, scale: float) -> None:
            self.scale = scale
            self.encode = tc.cache(self.encode, folder)  # type: ignore[method-assign]

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    assert torch.equal(Encoder(2.0).encode(batch()), batch() * 2)
    assert torch.equal(Encoder(3.0).encode(batch()), batch() * 3)
    again = Encoder(3.0)
    again.encode(batch())
    assert again.encode.stats()["hits"] == 4  # type: ignore[attr-defined]


def test_pickle_of_a_function(folder: str) -> None:
    cached = tc.cache(cache_nets.batch_double, folder, module_id="double")
    cached(batch())
    again = pickle.loads(pickle.dumps(cached))
    again(batch())
    assert again.stats()["hits"] == 4 and again.module_id == "double"
    assert copy.deepcopy(cached) is cached


def test_pickle_of_a_decorated_function() -> None:
    assert pickle.loads(pickle.dumps(cache_nets.decorated_double)) is cache_nets.decorated_double


def test_functions_of_functions_that_are_cached(folder: str) -> None:
    calls: list[str] = []
    inner = tc.cache(lambda x: (calls.append("inner"), x * 2)[1], folder, module_id="inner")

    @tc.cache(folder, module_id="outer")
    def outer(x: torch.Tensor) -> torch.Tensor:
        calls.append("outer")
        return inner(x) + 1

    for _ in range(2):
        assert torch.equal(outer(batch()), batch() * 2 + 1)
    assert calls == ["outer", "inner"]


def test_a_function_that_calls_itself(folder: str) -> None:
    @tc.cache(folder)
    def power(x: torch.Tensor, exponent: int) -> torch.Tensor:
        return torch.ones_like(x) if exponent == 0 else x * power(x, exponent - 1)

    torch.testing.assert_close(power(batch(), 3), batch() ** 3)
    assert power.stats()["misses"] == 16
    torch.testing.assert_close(power(batch(), 4), batch() ** 4)
    assert power.stats()["misses"] == 20


def test_numpy_arguments(folder: str) -> None:
    numpy = pytest.importorskip("numpy")
    calls = []

    def scaled(x: Any, factor: float) -> Any:
        calls.append(type(x))
        return x * factor

    cached = tc.cache(scaled, folder)
    rows = batch().numpy()
    for _ in range(2):
        assert numpy.array_equal(cached(rows, 2.0), rows * 2.0)
    assert calls == [numpy.ndarray]


def test_a_function_without_gradients_of_its_own(folder: str) -> None:
    weight = torch.ones(3)

    @torch.no_grad()
    def embed(x: torch.Tensor) -> torch.Tensor:
        return x * weight

    cached = tc.cache(embed, folder)
    assert torch.equal(cached(batch()), batch())
    weight.add_(1)
    # The decorator of torch is seen through.
    assert torch.equal(cached(batch()), batch() * 2)
