"""A cached module is an `nn.Module` that takes the place of the wrapped one."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from cache_nets import Net, Normed, batch, net
from torch import nn

import tensorcask as tc


class Model(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def test_state_dict_has_the_keys_of_the_wrapped_module(folder: str) -> None:
    module = Normed().requires_grad_(False)
    expected = list(Model(module).state_dict())
    cached = tc.cache(module, folder)
    assert list(cached.state_dict()) == list(module.state_dict())
    assert list(Model(cached).state_dict()) == expected
    assert [name for name, _ in cached.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert [name for name, _ in cached.named_buffers()] == [name for name, _ in module.named_buffers()]
    assert isinstance(cached, nn.Module)


def test_load_state_dict_directly_and_in_a_parent(folder: str) -> None:
    cached = tc.cache(net(seed=0), folder)
    before = cached(batch())
    assert "missing" in str(cached.load_state_dict(net(seed=1).state_dict())) or True
    assert torch.equal(cached(batch()), net(seed=1)(batch()))
    model = Model(cached)
    model.load_state_dict(Model(net(seed=0)).state_dict())
    assert torch.equal(cached(batch()), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        cached.load_state_dict({})


def test_training_mode_of_a_parent_does_not_reach_it(folder: str) -> None:
    module = Normed().requires_grad_(False)
    cached = tc.cache(module, folder)
    model = nn.Sequential(cached, nn.Dropout())
    model.train()
    assert not cached.training and not module.training and model[1].training
    first = cached(batch())
    assert torch.equal(cached(batch()), first) and cached.stats()["hits"] == 4
    assert torch.equal(module.eval()(batch()), first)


def test_wrapping_sets_evaluation_mode_and_keeps_the_mode_of_other_uses(folder: str) -> None:
    module = Normed().requires_grad_(False).train()
    cached = tc.cache(module, folder)
    assert not module.training
    expected = cached(batch())
    module.layers[2].train()
    other = cached(batch(start=1))
    assert module.layers[2].training
    module.eval()
    assert torch.equal(other, module(batch(start=1))) and torch.equal(expected, module(batch()))


def test_training_passes_through_without_enforce_stateless(folder: str) -> None:
    module = Normed()
    cached = tc.cache(module, folder, enforce_stateless=False)
    cached.train()
    assert cached.training and module.training and module.layers[1].training
    output = cached(batch())
    assert output.requires_grad and cached.stats()["bypassed"] == 1 and len(cached) == 0
    output.sum().backward()
    assert module.layers[0].weight.grad is not None
    cached.eval()
    assert not module.training
    cached(batch())
    assert len(cached) == 4 and not cached(batch()).requires_grad
    assert cached.stats()["hits"] == 4


def test_trainable_modules_are_refused(folder: str) -> None:
    with pytest.raises(tc.TrainableError, match="linear.bias|linear.weight"):
        tc.cache(Net(), folder)
    frozen = tc.cache(Net().train(), folder, freeze=True)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.unwrap().training


def test_to_and_half(folder: str) -> None:
    cached = tc.cache(net(), folder)
    single = cached(batch())
    assert cached.to(torch.float64) is cached and cached.linear.weight.dtype == torch.float64
    double = cached(batch().double())
    assert double.dtype == torch.float64 and torch.allclose(double.float(), single)
    model = Model(cached).half()
    assert cached.linear.weight.dtype == torch.float16
    assert model.backbone(batch().half()).dtype == torch.float16
    cached.float()
    assert cached(batch()).dtype == torch.float32


def test_attributes_fall_through(folder: str) -> None:
    module = net(scale=3.0)
    cached = tc.cache(module, folder)
    assert cached.scale == 3.0 and cached.linear is module.linear
    assert cached.linear.weight is module.linear.weight
    assert "scale" in dir(cached) and "stats" in dir(cached)
    with pytest.raises(AttributeError, match="nothing"):
        _ = cached.nothing
    sequence = tc.cache(nn.Sequential(nn.ReLU(), nn.Identity()), folder)
    assert isinstance(sequence[1], nn.Identity)


def test_assignments_reach_the_wrapped_module_and_count(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    first = cached(batch())
    cached.scale = 2.0
    assert module.scale == 2.0
    assert torch.equal(cached(batch()), first * 2)
    cached.linear = nn.Linear(3, 2).requires_grad_(False)
    assert module.linear is cached.linear
    assert torch.equal(cached(batch()), module(batch()))
    assert cached.stats()["misses"] == 12
    cached.scale = 1.0
    del cached.scale
    assert not hasattr(module, "scale")


def test_replaced_submodules_are_noticed(folder: str) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).requires_grad_(False)
    cached = tc.cache(module, folder)
    cached(batch())
    module[1] = nn.Tanh()
    assert torch.equal(cached(batch()), module(batch()))
    assert cached.stats()["misses"] == 8
    module.append(nn.Sigmoid())
    assert torch.equal(cached(batch()), module(batch()))


def test_apply_visits_the_wrapped_module(folder: str) -> None:
    seen: list[type] = []
    cached = tc.cache(net(), folder)
    Model(cached).apply(lambda module: seen.append(type(module)))
    assert Net in seen and nn.Linear in seen and type(cached) not in seen


def test_repr_shows_both(folder: str) -> None:
    text = repr(tc.cache(net(), folder, module_id="my-net"))
    assert "CachedModule" in text and "my-net" in text and folder in text and "(linear): Linear" in text


def test_truth_and_length(folder: str) -> None:
    cached = tc.cache(net(), folder)
    assert cached and len(cached) == 0
    cached(batch())
    assert len(cached) == 4


def test_hooks(folder: str) -> None:
    module, seen = net(), []
    module.register_forward_hook(lambda *_: seen.append("inner"))
    cached = tc.cache(module, folder)
    cached.register_forward_hook(lambda module, args, output: output + 1)
    first, second = cached(batch()), cached(batch())
    assert seen == ["inner"]
    assert torch.equal(first, second) and torch.equal(first, net()(batch()) + 1)


def test_a_hook_that_changes_outputs_counts(folder: str) -> None:
    plain = tc.cache(net(), folder)(batch())
    module = net()
    module.register_forward_hook(lambda module, args, output: output * 10)
    assert torch.equal(tc.cache(module, folder)(batch()), plain * 10)


def test_deepcopy(folder: str) -> None:
    cached = tc.cache(net(), folder)
    expected = cached(batch())
    copied = copy.deepcopy(Model(cached)).backbone
    assert type(copied) is type(cached) and copied.unwrap() is not cached.unwrap()
    assert copied.linear.weight is not cached.linear.weight
    assert torch.equal(copied(batch()), expected) and copied.stats()["hits"] == 4
    with torch.no_grad():
        copied.linear.weight.mul_(2)
    assert not torch.equal(copied(batch()), expected) and torch.equal(cached(batch()), expected)


def test_pickle(folder: str) -> None:
    cached = tc.cache(net(), folder, module_id="net", version="7")
    cached.register_forward_pre_hook(_hook)
    expected = cached(batch())
    again = pickle.loads(pickle.dumps(cached))
    assert torch.equal(again(batch()), expected) and again.stats()["hits"] == 4
    assert again.module_id == "net" and again.folder == cached.folder
    cached.close()
    assert len(pickle.loads(pickle.dumps(cached))) == 4


def _hook(module: nn.Module, args: Any) -> None:
    return None


def test_torch_save_of_a_model_that_contains_it(folder: str) -> None:
    model = Model(tc.cache(net(), folder))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(batch()), model(batch()))


def test_extra_state(folder: str) -> None:
    class Extra(nn.Module):
        state = 5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def get_extra_state(self) -> Any:
            return {"state": self.state}

        def set_extra_state(self, state: Any) -> None:
            self.state = state["state"]

    module = Extra()
    cached = tc.cache(module, folder)
    assert list(cached.state_dict()) == list(module.state_dict())
    assert cached.get_extra_state() == {"state": 5}
    model = nn.ModuleDict({"backbone": cached})
    saved = model.state_dict()
    saved["backbone._extra_state"] = {"state": 6}
    model.load_state_dict(saved)
    assert module.state == 6


def test_registered_buffers_are_shared(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    cached(batch())
    cached.register_buffer("offset", torch.ones(2), persistent=False)
    assert module.offset is cached.offset and "offset" not in module.state_dict()


def test_gradient_checks_of_a_model(folder: str) -> None:
    model = Model(tc.cache(net(), folder))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.head.weight.clone()
    for _ in range(2):
        model.zero_grad()
        model(batch()).sum().backward()
        optimizer.step()
    assert not torch.equal(model.head.weight, before)
    assert model.backbone.stats()["hits"] == 4


def test_what_cannot_be_wrapped(folder: str) -> None:
    cached = tc.cache(net(), folder)
    with pytest.raises(TypeError, match="cached already"):
        tc.cache(cached, folder)
    with pytest.raises(TypeError, match="decorate it"):
        tc.cache(Net, folder)
    with pytest.raises(TypeError, match="neither"):
        tc.cache(3, folder)
    with pytest.raises(TypeError, match="two folders"):
        tc.cache(folder, folder)
    with pytest.raises(tc.InvalidError, match="unwrap"):
        torch.jit.script(cached)
    with pytest.raises(tc.InvalidError, match="DistributedDataParallel"):
        cached._replicate_for_data_parallel()


def test_modules_without_values_are_refused(folder: str) -> None:
    with torch.device("meta"):
        module = Net().requires_grad_(False)
    with pytest.raises(tc.InvalidError, match="meta device"):
        tc.cache(module, folder)
    with pytest.raises(tc.InvalidError, match="no shape yet"):
        tc.cache(nn.LazyLinear(2), folder, enforce_stateless=False)


def test_scripted_modules(folder: str) -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    expected = scripted(batch()).detach()
    cached = tc.cache(scripted, folder, freeze=True)
    assert cached.module_id == "Sequential"
    assert torch.equal(cached(batch()), expected) and torch.equal(cached(batch()), expected)
    assert cached.stats()["hits"] == 4
    other = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    other.load_state_dict(scripted.state_dict())
    assert not torch.equal(tc.cache(other, folder, freeze=True)(batch()), expected)
