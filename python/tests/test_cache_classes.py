"""Decorated classes: their instances are cached."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from cache_nets import DecoratedNet, batch
from torch import nn

import tensorcask as tc


def make(folder: str | None, **options: Any) -> type[nn.Module]:
    """A decorated class that differs from call to call."""

    @tc.cache(folder, **{"freeze": True, **options})
    class Scaled(nn.Module):
        """Scales."""

        def __init__(self, size: int, scale: float = 1.0, *, name: str = "x") -> None:
            super(Scaled, self).__init__()  # noqa: UP008 - the form that breaks if the name is another class
            torch.manual_seed(0)
            self.linear = nn.Linear(size, 2)
            self.factor = scale
            self.samples = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.samples += len(x)
            return self.linear(x) * self.factor

    return Scaled


def test_instances_are_cached(folder: str) -> None:
    kind = make(folder, module_id="scaled")
    module = kind(3, scale=2.0)
    assert isinstance(module, kind) and kind.__name__ == "Scaled" and kind.__doc__ == "Scales."
    assert list(inspect.signature(kind).parameters) == ["size", "scale", "name"]
    assert torch.equal(module(batch()), module(batch())) and module.samples == 4
    assert torch.equal(module(torch.zeros(4, 3), ids=[0, 1, 2, 3]), module(batch(), ids=[0, 1, 2, 3]))
    assert module.stats()["hits"] == 8 and module.module_id == "scaled"
    module.close()
    again = kind(3, scale=2.0)
    again(batch())
    assert again.samples == 0


def test_constructor_arguments_count(folder: str) -> None:
    kind = make(folder)

    def misses(*args: Any, **kwargs: Any) -> int:
        module = kind(*args, **kwargs)
        module(batch())
        return int(module.stats()["misses"])

    assert misses(3) == 4 and misses(size=3) == 0 and misses(3, 1.0) == 0 and misses(3, name="x") == 0
    assert misses(3, 2.0) == 4
    # Even if nothing else shows them.
    assert misses(3, name="y") == 4 and misses(3, name="y") == 0


def test_tensors_among_constructor_arguments(folder: str) -> None:
    @tc.cache(folder, freeze=True)
    class Fixed(nn.Module):
        def __init__(self, table: torch.Tensor, options: dict[str, Any]) -> None:
            super().__init__()
            self.function = lambda x: x * table

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x)

    def misses(table: torch.Tensor, **options: Any) -> int:
        module = Fixed(table, options)
        module(batch())
        return int(module.stats()["misses"])

    assert misses(torch.ones(3)) == 4 and misses(torch.ones(3)) == 0
    assert misses(torch.zeros(3)) == 4 and misses(torch.ones(3), deep=[1, {"a": 2}]) == 4
    assert misses(torch.ones(3), deep=[1, {"a": 2}]) == 0


def test_weights_are_loaded_before_the_first_call(folder: str) -> None:
    kind = make(folder)
    module, other = kind(3), kind(3)
    other.load_state_dict({name: value + 1 for name, value in other.state_dict().items()})
    assert not torch.equal(module(batch()), other(batch()))
    assert other.stats()["hits"] == 0


def test_trainable_instances_are_refused_in_the_first_call(folder: str) -> None:
    module = make(folder, freeze=False)(3)
    with pytest.raises(tc.TrainableError, match="linear"):
        module(batch())
    module.requires_grad_(False)
    module(batch())


def test_training_mode_has_no_effect(folder: str) -> None:
    module = make(folder)(3)
    model = nn.Sequential(module, nn.Dropout()).train()
    assert not module.training and not module.linear.training and model[1].training
    module(batch())
    assert len(module) == 4


def test_training_without_enforce_stateless(folder: str) -> None:
    module = make(folder, freeze=False, enforce_stateless=False)(3)
    assert module.training and module(batch()).requires_grad and module.stats()["bypassed"] == 1
    module.eval()
    assert not module(batch()).requires_grad and module.stats()["misses"] == 4


def test_deepcopy_and_pickle() -> None:
    module = DecoratedNet(2.0).requires_grad_(False)
    expected = module(batch())
    copied = copy.deepcopy(module)
    assert torch.equal(copied(batch()), expected) and copied.linear.weight is not module.linear.weight
    again = pickle.loads(pickle.dumps(module))
    assert type(again) is DecoratedNet and torch.equal(again(batch()), expected)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(batch()), expected)


def test_copies_share_outputs_in_a_folder(folder: str) -> None:
    module = make(folder)(3, 2.0)
    module(batch())
    copied = copy.deepcopy(module)
    copied(batch())
    assert copied.stats()["hits"] == 4


def test_subclasses(folder: str) -> None:
    kind = make(folder)

    class Shifted(kind):  # type: ignore[valid-type,misc]
        def __init__(self, shift: float) -> None:
            super().__init__(3, scale=2.0)
            self.added = shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.added

    plain = kind(3, scale=2.0)(batch())
    for shift in (1.0, 5.0):
        module = Shifted(shift)
        assert torch.equal(module(batch()), plain + shift) and module.stats()["misses"] == 4
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    again = Shifted(5.0)
    again(batch())
    assert again.stats()["hits"] == 4


def test_a_class_without_a_constructor(folder: str) -> None:
    @tc.cache(folder)
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    module = Doubled()
    assert torch.equal(module(batch()), batch() * 2) and len(module) == 4


def test_methods_of_the_class_stay(folder: str) -> None:
    @tc.cache(folder)
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def close(self) -> str:
            return "own"

    module = Own()
    assert module.close() == "own"
    module(batch())
    assert module.stats()["misses"] == 4


def test_state_dict_and_repr_stay(folder: str) -> None:
    module = make(folder)(3)
    assert list(module.state_dict()) == ["linear.weight", "linear.bias"]
    assert repr(module).startswith("Scaled(") and module
    module.enabled = False
    module(batch())
    assert module.stats()["bypassed"] == 1 and not module.enabled
    module.enabled = True
    with module.disabled():
        module(batch())
    module(batch())
    assert module.stats()["misses"] == 4


def test_errors_of_the_constructor_pass_through(folder: str) -> None:
    with pytest.raises(TypeError, match="size"):
        make(folder)()
    with pytest.raises(TypeError, match="no option"):
        make(folder, disk_byts=3)
    with pytest.raises(TypeError, match="cached already"):
        tc.cache(folder)(make(folder))
    with pytest.raises(TypeError, match="cached already"):
        tc.cache(make(folder)(3), folder)
