"""Changes between calls, of everything that a computation depends on beside tensors."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cache_nets import batch
from torch import nn

import tensorcask as tc


@dataclasses.dataclass
class Config:
    """Settings of a network."""

    factor: float = 1.0


class Holder:
    """An object of the user."""

    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0


class Block(nn.Module):
    """A network that depends on plain values of many kinds."""

    kind_factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.factor: Any = 1.0
        self.mode = "a"
        self.activation: Callable[[torch.Tensor], torch.Tensor] = torch.relu
        self.factors = [1.0]
        self.by_name = {"k": 1.0, "nested": {"k": 1.0}}
        self.config = Config()
        self.space = SimpleNamespace(factor=1.0)
        self.holder = Holder()
        self.array = np.ones(3, dtype=np.float32)
        self.tensors = [torch.ones(3)]
        self.names = {"a"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm(self.linear(x))) * self.factor * self.factors[0] * self.by_name["k"]
        x = x * self.by_name["nested"]["k"] * self.config.factor * self.space.factor * self.holder.factor  # type: ignore[index]
        x = x * torch.from_numpy(self.array) * self.tensors[0] * type(self).kind_factor * len(self.names)
        return x * (2 if self.mode == "b" else 1)


class Top(nn.Module):
    """A network with a child."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.block(x))


def _swap_children(top: Top) -> None:
    first = top.layers._modules.pop("0")
    top.layers._modules["0"] = first


CHANGES: dict[str, Callable[[Top], Any]] = {
    "attribute of a child": lambda top: setattr(top.block, "factor", 3.0),
    "attribute of a library's module": lambda top: setattr(top.block.norm, "eps", 1.0),
    "text": lambda top: setattr(top.block, "mode", "b"),
    "function": lambda top: setattr(top.block, "activation", torch.sigmoid),
    "list": lambda top: top.block.factors.__setitem__(0, 3.0),
    "dict": lambda top: top.block.by_name.update(k=3.0),
    "nested dict": lambda top: top.block.by_name["nested"].update(k=3.0),  # type: ignore[attr-defined]
    "set": lambda top: top.block.names.add("b"),
    "dataclass": lambda top: setattr(top.block.config, "factor", 3.0),
    "namespace": lambda top: setattr(top.block.space, "factor", 3.0),
    "object with slots": lambda top: setattr(top.block.holder, "factor", 3.0),
    "array": lambda top: top.block.array.__setitem__(1, 3.0),
    "tensor in a list": lambda top: top.block.tensors.__setitem__(0, torch.full((3,), 3.0)),
    "bytes of a tensor in a list": lambda top: top.block.tensors[0].mul_(3),
    "forward of a child": lambda top: setattr(top.block, "forward", lambda x: x * 9),
    "hook": lambda top: top.block.linear.register_forward_hook(lambda module, args, output: output * 2),
    "hook before": lambda top: top.block.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "order of children": _swap_children,
    "parameter that was None": lambda top: setattr(top.layers[0], "bias", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_of_a_module(folder: str, change: Callable[[Top], Any]) -> None:
    def made() -> Top:
        torch.manual_seed(0)
        return Top()

    module = made()
    with tc.cache(module, folder) as cached:
        cached(batch(4))
        change(module)
        assert torch.equal(cached(batch(4)), module(batch(4)))
        assert cached.stats()["misses"] == 8
        cached(batch(4, 10))
        cached(batch(4))
        assert cached.stats()["misses"] == 12
    # The rows of the changed module are not found by one that is as before.
    fresh = made()
    with tc.cache(fresh, folder) as again:
        assert torch.equal(again(batch(4, 10)), fresh(batch(4, 10)))
        assert again.stats()["misses"] == 4
        assert torch.equal(again(batch(4)), fresh(batch(4))) and again.stats()["hits"] == 4


def test_a_parameter_that_is_added(folder: str) -> None:
    module = nn.Linear(3, 3, bias=False).requires_grad_(False)
    cached = tc.cache(module, folder)
    before = cached(batch())
    module.bias = nn.Parameter(torch.ones(3), requires_grad=False)
    assert torch.equal(cached(batch()), before + 1)


def test_of_a_class_of_the_user(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Top()
    cached = tc.cache(module, folder)
    cached(batch())
    monkeypatch.setattr(Block, "kind_factor", 3.0)
    assert torch.equal(cached(batch()), module(batch()))
    monkeypatch.setattr(Block, "forward", lambda self, x: x * 5)
    assert torch.equal(cached(batch()), module(batch()))


def test_of_an_instance_of_a_decorated_class(folder: str) -> None:
    @tc.cache(folder)
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 2.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    scaled = Scaled()
    assert torch.equal(scaled(batch()), batch() * 2)
    scaled.factor = 3.0
    assert torch.equal(scaled(batch()), batch() * 3)
    scaled.factor = 2.0
    assert torch.equal(scaled(batch()), batch() * 2)
    assert scaled.stats()["misses"] == 8 and scaled.stats()["hits"] == 4


SETTINGS = {"factor": 2.0}
TENSORS = [torch.full((3,), 2.0)]
ARRAY = np.full(3, 2.0, dtype=np.float32)


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    yield
    SETTINGS["factor"], TENSORS[0], ARRAY[:] = 2.0, torch.full((3,), 2.0), 2.0


def _by_settings(x: torch.Tensor) -> torch.Tensor:
    return x * SETTINGS["factor"]


def _by_tensors(x: torch.Tensor) -> torch.Tensor:
    return x * TENSORS[0]


def _by_array(x: torch.Tensor) -> torch.Tensor:
    return x * torch.from_numpy(ARRAY)


@pytest.mark.parametrize(
    ("function", "change"),
    [
        (_by_settings, lambda: SETTINGS.update(factor=3.0)),
        (_by_tensors, lambda: TENSORS.__setitem__(0, torch.full((3,), 3.0))),
        (_by_array, lambda: ARRAY.fill(3.0)),
    ],
    ids=["dict", "tensor in a list", "array"],
)
def test_of_a_global(function: Callable[[torch.Tensor], torch.Tensor], change: Callable[[], Any]) -> None:
    cached = tc.cache(function)
    assert torch.equal(cached(batch()), batch() * 2)
    change()
    assert torch.equal(cached(batch()), batch() * 3)
    assert cached.stats()["misses"] == 8


def test_of_a_function() -> None:
    factors = [2.0]

    def by_closure(x: torch.Tensor) -> torch.Tensor:
        return x * factors[0]

    def by_default(x: torch.Tensor, factor: float = 2.0, *, settings: dict[str, float] = {"f": 1.0}) -> torch.Tensor:  # noqa: B006
        return x * factor * settings["f"] * by_default.weight  # type: ignore[attr-defined]

    by_default.weight = 1.0  # type: ignore[attr-defined]

    def other(x: torch.Tensor, factor: float = 1.0, *, settings: Any = None) -> torch.Tensor:
        return x - factor

    cached = tc.cache(by_closure)
    assert torch.equal(cached(batch()), batch() * 2)
    factors[0] = 3.0
    assert torch.equal(cached(batch()), batch() * 3)
    cached = tc.cache(by_default)
    assert torch.equal(cached(batch()), batch() * 2)
    by_default.__defaults__ = (3.0,)
    assert torch.equal(cached(batch()), batch() * 3)
    by_default.__kwdefaults__["settings"]["f"] = 2.0
    assert torch.equal(cached(batch()), batch() * 6)
    by_default.weight = 2.0  # type: ignore[attr-defined]
    assert torch.equal(cached(batch()), batch() * 12)
    by_default.__kwdefaults__["settings"] = {"f": 1.0}
    assert torch.equal(cached(batch()), batch() * 6)
    by_default.__code__ = other.__code__.replace(co_freevars=by_default.__code__.co_freevars)
    assert torch.equal(cached(batch()), batch() - 3)


def test_a_number_of_another_type(folder: str) -> None:
    module = Top()
    module.block.factor = 2
    cached = tc.cache(module, folder)
    cached(batch())
    module.block.factor = 2.0
    cached(batch())
    assert cached.stats()["misses"] == 8
    # Another object of the same value is no change.
    module.block.factor = float("2.0")
    cached(batch())
    assert cached.stats()["misses"] == 8 and cached.stats()["hits"] == 4


def test_changes_that_the_computation_makes_do_not_count(folder: str) -> None:
    def note(module: nn.Module, x: torch.Tensor) -> None:
        vars(module)["last"] = len(x)
        vars(module).setdefault("log", []).append(len(x))

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = 0
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            note(self, x)
            return self.linear(x)

    module = Noting().requires_grad_(False)
    cached = tc.cache(module, folder)
    for start in (0, 1, 2):
        cached(batch(4, start))
        cached(batch(4, start))
    assert cached.stats()["hits"] == 18 and cached.stats()["misses"] == 6
    before = cached.folder
    cached.close()
    again = tc.cache(module.__class__().requires_grad_(False), folder)
    again.load_state_dict(module.state_dict())
    again(batch(4))
    assert again.stats()["hits"] == 4 and again.folder == before


class Activation(enum.Enum):
    """Members with values."""

    SCALED = 2.0


class Bits(enum.IntFlag, boundary=enum.KEEP):
    """Flags, of which some have no name."""

    A = 1


def _ordered(names: str) -> nn.Module:
    kinds = {"a": nn.ReLU(), "b": nn.Threshold(0.5, -7.0)}
    return nn.Sequential(collections.OrderedDict((name, kinds[name]) for name in names))


def _shared(first: bool) -> nn.Module:
    module = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Tanh()})
    module["c"] = module["a" if first else "b"]
    return nn.Sequential(collections.OrderedDict(module.items()))


def _listed(attribute: Any) -> nn.Module:
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.given = attribute

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0

    return Listing()


def _aliased(position: int) -> nn.Module:
    objects = [Config(1.0), Config(2.0)]
    tensors, functions = [torch.ones(2), torch.zeros(2)], [_scaler(2.0), _scaler(3.0)]
    return _listed([objects, objects[position], tensors, tensors[position], functions, functions[position]])


def _scaler(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * factor


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_ordered("ab"), _ordered("ba")),
        (_shared(True), _shared(False)),
        (_listed({"mul": 2.0, "add": 1.0}), _listed({"add": 1.0, "mul": 2.0})),
        (_listed([{"x": {"b": 1, "a": 2}}]), _listed([{"x": {"a": 2, "b": 1}}])),
        (_listed(Bits(8)), _listed(Bits(16))),
        (_listed(enum.Enum("E", {"A": 1}).A), _listed(enum.Enum("E", {"A": 2}).A)),
        (_listed(Activation.SCALED), _listed(Activation)),
        (_listed("cpu"), _listed("mps")),
        (_aliased(0), _aliased(1)),
        (_listed(1), _listed(True)),
    ],
    ids=["children", "shared", "dict", "nested dict", "flags", "enum", "class", "text", "aliases", "types"],
)
def test_what_differs(folder: str, one: nn.Module, other: nn.Module) -> None:
    assert [_misses(module, folder) for module in (one, other, one, other)] == [4, 4, 0, 0]


def test_sets_and_devices_have_no_order_and_no_place(folder: str) -> None:
    one, other = _listed({"a", "b", "c"}), _listed({"c", "b", "a"})
    assert _misses(one, folder) == 4 and _misses(other, folder) == 0
    one.device, other.device = "cpu", "cuda:0"
    assert _misses(one, folder) == 4 and _misses(other, folder) == 0


def test_texts_and_numbers_of_constructors_differ(folder: str) -> None:
    @tc.cache(folder)
    class Scaled(nn.Module):
        def __init__(self, factor: Any) -> None:
            super().__init__()
            self.computed = torch.full((3,), float(factor) if isinstance(factor, int) else 7.0)[0].item() * 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    one, other = Scaled("1"), Scaled(1)
    one(batch()), other(batch())
    assert one.stats()["misses"] == 4 and other.stats()["misses"] == 4


def test_attributes_of_other_objects_are_not_written_by_forward(folder: str) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            note = Holder()
            note.factor = 1.0
            self.calls += 1
            return x * self.factor

    one, other = Scaled(2.0), Scaled(3.0)
    assert [_misses(module, folder) for module in (one, other, one, other)] == [4, 4, 0, 0]


def test_the_code_of_what_holds_plain_values_counts(folder: str) -> None:
    def settings(power: int) -> Any:
        if power == 1:
            @dataclasses.dataclass
            class Settings:
                factor: float = 2.0

                def apply(self, x: torch.Tensor) -> torch.Tensor:
                    return x * self.factor
        else:
            @dataclasses.dataclass
            class Settings:  # type: ignore[no-redef]
                factor: float = 2.0

                def apply(self, x: torch.Tensor) -> torch.Tensor:
                    return x + self.factor

        return Settings()

    assert _misses(_listed(settings(1)), folder) == 4 and _misses(_listed(settings(2)), folder) == 4
    extended = settings(1)
    extended.more = 1
    assert _misses(_listed(extended), folder) == 4 and _misses(_listed(settings(1)), folder) == 0


def _misses(module: nn.Module, folder: str) -> int:
    with tc.cache(module, folder, module_id="net") as cached:
        output = cached(batch())
        assert torch.equal(output, module(batch()))
        return int(cached.stats()["misses"])
