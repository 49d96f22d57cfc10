"""Calls of cached modules: by ids and by content, their arguments, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_nets import batch, net
from torch import nn

import tensorcask as tc


def test_by_ids(folder: str) -> None:
    module, x = net(), batch()
    cached = tc.cache(module, folder)
    first = cached(x, ids=["a", "b", "c", "d"])
    second = cached(x, ids=["a", "b", "c", "d"])
    assert torch.equal(first, module(x)) and torch.equal(first, second)
    assert module.samples == 8  # four of the cache, four of the direct call
    assert cached.stats()["hits"] == 4 and cached.stats()["misses"] == 4


def test_by_content(folder: str) -> None:
    module, x = net(), batch()
    cached = tc.cache(module, folder)
    assert torch.equal(cached(x), cached(x.clone()))
    assert module.samples == 4
    cached(x + 1e-3)
    assert module.samples == 8


@pytest.mark.parametrize(
    "ids",
    [[3, 1, 2, 0], torch.tensor([3, 1, 2, 0]), torch.tensor([3, 1, 2, 0], dtype=torch.int32), (3, 1, 2, 0)],
    ids=["list", "int64", "int32", "tuple"],
)
def test_kinds_of_integer_ids_are_the_same(folder: str, ids: Any) -> None:
    module, x = net(), batch()
    cached = tc.cache(module, folder)
    expected = cached(x, ids=[3, 1, 2, 0])
    assert torch.equal(cached(x, ids=ids), expected)
    assert module.samples == 4


def test_numpy_ids(folder: str) -> None:
    numpy = pytest.importorskip("numpy")
    module = net()
    cached = tc.cache(module, folder)
    cached(batch(), ids=[3, 1, 2, 0])
    cached(batch(), ids=numpy.array([3, 1, 2, 0]))
    assert module.samples == 4


def test_ids_hit_whatever_the_content(folder: str) -> None:
    cached = tc.cache(net(), folder)
    kept = cached(batch(), ids=[0, 1, 2, 3])
    assert torch.equal(cached(torch.zeros(4, 3), ids=[0, 1, 2, 3]), kept)


def test_partial_hits_keep_the_order(folder: str) -> None:
    module, x = net(), batch(6)
    cached = tc.cache(module, folder)
    cached(x[[1, 4]], ids=[1, 4])
    rows = cached(x[[4, 0, 1, 5]], ids=[4, 0, 1, 5])
    torch.testing.assert_close(rows, net()(x[[4, 0, 1, 5]]))
    assert module.samples == 4 and cached.stats()["hits"] == 2


def test_duplicates_are_computed_once(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    x = batch(1).expand(5, 3)
    rows = cached(x, ids=["a"] * 5)
    assert rows.shape == (5, 2) and bool((rows == rows[0]).all())
    assert module.samples == 1 and cached.stats()["duplicates"] == 4


def test_variants_are_apart(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    cached(batch(), ids=[0, 1, 2, 3], variant=0)
    cached(batch(), ids=[0, 1, 2, 3], variant=1)
    assert module.samples == 8
    cached(batch(), ids=[0, 1, 2, 3], variant=1)
    assert module.samples == 8 and len(cached) == 8


def test_plain_arguments_are_part_of_the_key(folder: str) -> None:
    calls = []

    def scaled(x: torch.Tensor, factor: float = 1.0, mode: str | None = None) -> torch.Tensor:
        calls.append(len(x))
        return x * factor + (1 if mode == "up" else 0)

    cached = tc.cache(scaled, folder)
    x = batch()
    assert torch.equal(cached(x, factor=2.0), x * 2)
    assert torch.equal(cached(x, factor=3.0), x * 3)
    assert torch.equal(cached(x, factor=3.0, mode="up"), x * 3 + 1)
    assert torch.equal(cached(x, factor=3.0, mode="up"), x * 3 + 1)
    assert calls == [4, 4, 4]


def test_masks_and_nested_inputs(folder: str) -> None:
    class Sum(nn.Module):
        def forward(self, inputs: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
            self.samples = getattr(self, "samples", 0) + len(mask)
            return (inputs["x"] + inputs["more"][0]) * mask

    module = Sum()
    cached = tc.cache(module, folder)
    inputs = {"x": batch(), "more": [batch(start=1), "text"]}
    mask = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    first = cached(inputs, mask=mask)
    assert torch.equal(first, (batch() + batch(start=1)) * mask)
    assert torch.equal(cached(inputs, mask=mask), first) and module.samples == 4
    mask[0] = 0.0
    assert torch.equal(cached(inputs, mask=mask)[0], torch.zeros(3)) and module.samples == 5


def test_shared_tensors_count_for_all_samples(folder: str) -> None:
    calls = []

    def add(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x + bias

    cached = tc.cache(add, folder)
    bias = torch.ones(3)
    assert torch.equal(cached(batch(), tc.shared(bias)), batch() + 1)
    assert torch.equal(cached(batch(), tc.shared(bias.clone())), batch() + 1)
    assert torch.equal(cached(batch(), tc.shared(bias * 2)), batch() + 2)
    assert calls == [4, 4]


def test_empty_batch(folder: str) -> None:
    cached = tc.cache(net(), folder)
    assert cached(torch.zeros(0, 3)).shape == (0, 2)
    assert cached(torch.zeros(0, 3), ids=[]).shape == (0, 2)


def test_lazy_loads_only_what_is_missing(folder: str) -> None:
    module, x = net(), batch()
    cached = tc.cache(module, folder)
    cached(x[:2], ids=["a", "b"])
    asked = []

    def load(positions: list[int]) -> torch.Tensor:
        asked.append(list(positions))
        return x[positions]

    rows = cached.lazy(["a", "b", "c", "d"], load)
    torch.testing.assert_close(rows, net()(x))
    assert asked == [[2, 3]] and module.samples == 4
    cached.lazy(["d", "a"], load)
    assert len(asked) == 1


def test_lazy_with_names_and_arguments(folder: str) -> None:
    def mixed(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
        return left + right * factor

    cached = tc.cache(mixed, folder)
    x = batch()

    def load(positions: list[int]) -> dict[str, torch.Tensor]:
        return {"left": x[positions], "right": x[positions] + 1}

    rows = cached.lazy([0, 1, 2, 3], load, tensors=["left", "right"], kwargs={"factor": 0.5})
    assert torch.equal(rows, x + (x + 1) * 0.5)
    again = cached(left=torch.zeros(4, 3), right=torch.zeros(4, 3), factor=0.5, ids=[0, 1, 2, 3])
    assert torch.equal(again, rows)


def test_contains(folder: str) -> None:
    cached = tc.cache(net(), folder)
    cached(batch(2), ids=["a", "b"])
    cached(batch(2))
    assert list(cached.contains(["a", "x"])) == [True, False]
    assert list(cached.contains("b")) == [True]
    assert list(cached.contains(ids=["b", "y"])) == [True, False]
    assert list(cached.contains(batch(3))) == [True, True, False]
    assert list(cached.contains(ids=["a"], variant=1)) == [False]


def test_ids_from(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder, ids_from=lambda x: [int(value) for value in x[:, 0] * 10])
    cached(batch())
    cached(batch() + torch.tensor([0.0, 5.0, 5.0]))
    assert module.samples == 4


def test_parameters_called_ids_belong_to_the_function(folder: str) -> None:
    def embed(ids: torch.Tensor, variant: int = 0) -> torch.Tensor:
        return ids.float() * (variant + 1)

    cached = tc.cache(embed, folder)
    tokens = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(cached(ids=tokens, variant=1), tokens.float() * 2)
    rows = cached.call((), {"ids": tokens}, ids=["a", "b"])
    assert torch.equal(rows, tokens.float())
    assert torch.equal(cached.call((), {"ids": torch.zeros_like(tokens)}, ids=["a", "b"]), rows)
    named = tc.cache(embed, folder, ids_as="sample_ids", variant_as="sample_variant")
    assert torch.equal(named(ids=torch.zeros_like(tokens), sample_ids=["a", "b"]), rows)
    with pytest.raises(TypeError, match="ids_as"):
        tc.cache(embed, folder, ids_as="ids")


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a"], "1 ids were given for 4 samples"), ([1, 2, 3, -4], "-4"), ([1, "a", 2, "b"], "."), ([1.5, 2, 3, 4], ".")],
    ids=["length", "negative", "mixed", "floats"],
)
def test_unusable_ids(folder: str, ids: Any, message: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    with pytest.raises((tc.InvalidError, TypeError), match=message):
        cached(batch(), ids=ids)
    assert module.samples == 0 and len(cached) == 0


def test_batches_that_do_not_fit(folder: str) -> None:
    cached = tc.cache(lambda x, y: x + y, folder, version="1")
    with pytest.raises(tc.InvalidError, match="first dimensions differ"):
        cached(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(tc.InvalidError, match="no tensor"):
        cached(torch.tensor(1.0), torch.tensor(2.0))


def test_sparse_inputs_are_refused(folder: str) -> None:
    cached = tc.cache(net(), folder)
    with pytest.raises(tc.InvalidError, match="sparse"):
        cached(batch().to_sparse())


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat([x, x], 1)[:, :3],
        lambda x: x.flip(0).flip(0),
        lambda x: torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag,
        lambda x: torch._neg_view(-x),
    ],
    ids=["transposed", "sliced", "flipped", "imaginary", "negated"],
)
def test_views_have_the_content_of_their_elements(folder: str, view: Any) -> None:
    module, x = net(), batch()
    cached = tc.cache(module, folder)
    expected = cached(x)
    assert torch.equal(view(x), x)
    assert torch.equal(cached(view(x)), expected)
    assert module.samples == 4


def test_channels_last_and_conjugated_inputs(folder: str) -> None:
    calls = []

    def same(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x.resolve_conj() * 1

    cached = tc.cache(same, folder)
    images = torch.arange(48.0).reshape(2, 3, 2, 4)
    cached(images)
    assert torch.equal(cached(images.contiguous(memory_format=torch.channels_last)), images)
    waves = torch.view_as_complex(torch.arange(12.0).reshape(2, 3, 2))
    cached(waves.conj())
    assert torch.equal(cached(waves.conj().resolve_conj()), waves.conj().resolve_conj())
    assert calls == [2, 2]


def test_inputs_that_require_gradients(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    x = batch().requires_grad_()
    with pytest.raises(tc.InvalidError, match="requires a gradient"):
        cached(x)
    assert module.samples == 0
    with torch.no_grad():
        assert not cached(x).requires_grad
    allowed = tc.cache(module, folder, allow_grad_inputs=True)
    assert not allowed(x * 2).requires_grad


def test_outputs_are_without_gradients(folder: str) -> None:
    head = nn.Linear(2, 1)
    cached = tc.cache(net(), folder)
    for _ in range(2):
        loss = head(cached(batch())).sum()
        loss.backward()
    assert head.weight.grad is not None


class MyError(Exception):
    """An error of the module."""


def _raising(error: BaseException) -> nn.Module:
    class Raising(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x[0, 0] == 0:
                raise error
            return x

    return Raising()


@pytest.mark.parametrize("error", [MyError("own"), KeyboardInterrupt(), RuntimeError("of torch")], ids=repr)
def test_errors_of_the_module_pass_through(folder: str, error: BaseException) -> None:
    cached = tc.cache(_raising(error), folder, version="1")
    with pytest.raises(type(error)) as caught:
        cached(batch())
    assert caught.value is error
    assert any(entry.name == "forward" for entry in caught.traceback)
    assert len(cached) == 0
    # The cache works on.
    assert torch.equal(cached(batch(start=1)), batch(start=1)) and len(cached) == 4


def test_errors_of_a_loader_pass_through(folder: str) -> None:
    cached = tc.cache(net(), folder)
    with pytest.raises(MyError):
        cached.lazy([1, 2], lambda positions: (_ for _ in ()).throw(MyError()))
    assert len(cached) == 0


def test_outputs_without_a_row_for_each_sample(folder: str) -> None:
    cached = tc.cache(lambda x: x.sum(), folder, version="1")
    with pytest.raises(tc.InvalidError):
        cached(batch())
    shorter = tc.cache(lambda x: x[:1], folder, version="2")
    with pytest.raises(tc.InvalidError):
        shorter(batch())
    assert len(cached) == 0 and len(shorter) == 0


def test_inference_mode(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    with torch.inference_mode():
        first = cached(batch())
        second = cached(batch())
    third = cached(batch())
    assert torch.equal(first, second) and torch.equal(first, third)
    assert module.samples == 4
    # What was kept in inference mode can be used for training.
    nn.Linear(2, 1)(third).sum().backward()


def test_results_are_not_shared(folder: str) -> None:
    cached = tc.cache(net(), folder)
    expected = cached(batch()).clone()
    cached(batch()).zero_()
    assert torch.equal(cached(batch()), expected)


def test_a_module_that_reuses_its_output(folder: str) -> None:
    class Reusing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "buffer_"):
                self.buffer_ = torch.empty(4, 3)
            self.buffer_.copy_(x)
            return self.buffer_

    cached = tc.cache(Reusing(), folder, version="1")
    first = cached(batch())
    cached(batch(start=9))
    assert torch.equal(first, batch())
    assert torch.equal(cached(batch()), batch())


def test_a_reserved_name(folder: str) -> None:
    cached = tc.cache(lambda x, **named: x * len(named), folder, module_id="f", version="1")
    with pytest.raises(tc.InvalidError, match="reserved"):
        cached(batch(), **{"torch.autocast": 1})
