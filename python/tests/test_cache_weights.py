"""Changes of weights are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_nets import Net, Normed, batch, net
from torch import nn

import tensorcask as tc


def _in_place(module: Net) -> None:
    with torch.no_grad():
        module.linear.weight.add_(1)


def _one_element(module: Net) -> None:
    with torch.no_grad():
        module.linear.weight[1, 2] = 7


def _load_state_dict(module: Net) -> None:
    module.load_state_dict(net(seed=5).state_dict())


def _load_with_assign(module: Net) -> None:
    module.load_state_dict(net(seed=5).state_dict(), assign=True)


def _replace_parameter(module: Net) -> None:
    module.linear.weight = nn.Parameter(torch.ones(2, 3), requires_grad=False)


def _set_data(module: Net) -> None:
    module.linear.weight.data = torch.ones(2, 3)


def _write_data(module: Net) -> None:
    module.linear.bias.data.fill_(9)


def _init(module: Net) -> None:
    nn.init.constant_(module.linear.weight, 0.25)


def _remove_bias(module: Net) -> None:
    module.linear.bias = None


CHANGES = [_in_place, _one_element, _load_state_dict, _load_with_assign, _replace_parameter, _set_data, _write_data,
           _init, _remove_bias]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_changes_after_wrapping(folder: str, change: Callable[[Net], None]) -> None:
    module = net()
    cached = tc.cache(module, folder)
    before, folder_before = cached(batch()), cached.folder
    change(module)
    expected = module(batch())
    assert not torch.equal(expected, before)
    assert torch.equal(cached(batch()), expected)
    assert torch.equal(cached(batch()), expected)
    assert cached.folder != folder_before


def test_former_weights_hit_again(folder: str) -> None:
    module = net()
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    cached = tc.cache(module, folder)
    before = cached(batch())
    _in_place(module)
    cached(batch())
    module.load_state_dict(saved)
    assert torch.equal(cached(batch()), before)
    assert cached.stats()["hits"] == 4 and cached.stats()["misses"] == 8


def test_an_optimizer_step(folder: str) -> None:
    module = Net()
    cached = tc.cache(module, folder, enforce_stateless=False).eval()
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(3):
        torch.testing.assert_close(cached(batch()), module(batch()).detach())
        module(batch()).sum().backward()
        optimizer.step()
    assert cached.stats()["hits"] == 0


def test_running_statistics(folder: str) -> None:
    module = Normed().requires_grad_(False)
    cached = tc.cache(module, folder)
    before = cached(batch())
    module.train()
    module(batch() * 100)
    module.eval()
    after = cached(batch())
    assert torch.equal(after, module(batch())) and not torch.equal(after, before)


def test_a_buffer(folder: str) -> None:
    module = Normed().requires_grad_(False)
    cached = tc.cache(module, folder)
    cached(batch())
    module.layers[1].running_mean.add_(1)
    assert torch.equal(cached(batch()), module(batch()))


def test_requires_grad_afterwards(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    cached(batch())
    module.requires_grad_(True)
    with pytest.raises(tc.TrainableError):
        cached(batch())
    module.requires_grad_(False)
    cached(batch())


def test_a_tensor_that_is_a_plain_attribute(folder: str) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = torch.zeros(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.offset

    module = Shifted()
    cached = tc.cache(module, folder)
    assert torch.equal(cached(batch()), batch())
    module.offset.add_(1)
    assert torch.equal(cached(batch()), batch() + 1)
    module.offset = torch.full((3,), 5.0)
    assert torch.equal(cached(batch()), batch() + 5)
    other = Shifted()
    assert torch.equal(tc.cache(other, folder)(batch()), batch())


def test_modules_in_plain_lists(folder: str) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [nn.Linear(3, 3).requires_grad_(False)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts[0](x)

    module = Hidden()
    cached = tc.cache(module, folder)
    cached(batch())
    with torch.no_grad():
        module.parts[0].weight.zero_()
    assert torch.equal(cached(batch()), module(batch()))


@pytest.mark.parametrize("declared", [False, True])
def test_what_forward_keeps_is_no_weight(folder: str, declared: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.log: list[int] = []
            if declared:
                self.last = torch.zeros(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.log.append(len(x))
            setattr(self, "last", x * 2) if declared else self._keep(x)
            return self.last + 1

        def _keep(self, x: torch.Tensor) -> None:
            self.last = x * 2

    module = Attention()
    cached = tc.cache(module, folder)
    for start in (0, 1, 0, 1):
        assert torch.equal(cached(batch(start=start)), batch(start=start) * 2 + 1)
    assert cached.stats()["hits"] >= 7
    again = tc.cache(module, folder)
    again(batch(start=1))
    assert again.stats()["hits"] == 4


def test_ignored_weights_are_served_with_a_warning(folder: str) -> None:
    before = tc.cache(net(seed=0), folder, weights="ignore")(batch())
    with pytest.warns(tc.TensorcaskWarning, match="weights"):
        other = tc.cache(net(seed=1), folder, weights="ignore")
        assert torch.equal(other(batch()), before)


def test_weights_changed_covers_plain_attributes(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    before = cached(batch())
    module.scale = 2.0
    cached.weights_changed()
    assert torch.equal(cached(batch()), before * 2)


def test_tied_weights_and_shared_modules(folder: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.again = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.two(self.one(x)))

    module = Tied().requires_grad_(False)
    cached = tc.cache(module, folder)
    cached(batch())
    with torch.no_grad():
        module.two.weight.mul_(2)
    assert torch.equal(cached(batch()), module(batch()))
    module.two.weight = nn.Parameter(torch.ones(3, 3), requires_grad=False)
    assert torch.equal(cached(batch()), module(batch()))


def test_weight_normalisation(folder: str) -> None:
    module = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).requires_grad_(False)
    cached = tc.cache(module, folder)
    cached(batch())
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(3)
    assert torch.equal(cached(batch()), module(batch()))
    assert cached(batch()) is not None and cached.stats()["hits"] == 4


def test_large_modules(folder: str) -> None:
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(60))).requires_grad_(False)
    cached = tc.cache(module, folder)
    cached(batch())
    for at in (0, 30, 59):
        with torch.no_grad():
            module[at].bias.add_(1)
        assert torch.equal(cached(batch()), module(batch()))


def test_fingerprints_and_instances(folder: str) -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def misses(**options: Any) -> int:
        cached = tc.cache(scaled, folder, module_id="scaled", **options)
        cached(batch())
        return int(cached.stats()["misses"])

    assert misses(fingerprint={"w": b"one"}) == 4
    assert misses(fingerprint={"w": b"one"}) == 0
    assert misses(fingerprint={"w": b"two"}) == 4
    assert misses(fingerprint={"w": torch.ones(3)}) == 4
    assert misses(fingerprint={"w": torch.ones(3)}) == 0
    assert misses(fingerprint={"w": torch.ones(3).double()}) == 4
    assert misses(instance="a") == 4 and misses(instance="a") == 0 and misses(instance="b") == 4
    with pytest.raises(TypeError, match="fingerprint"):
        misses(fingerprint={"w": object()})
