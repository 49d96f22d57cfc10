"""Models of ``transformers``: outputs per sample, and per token without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny_models  # noqa: E402

import tensorcask as tc  # noqa: E402

cache_tokens = tc.integrations.transformers.cache_tokens
TEXTS = tiny_models.sentences(10)


@pytest.fixture
def model() -> Any:
    return tiny_models.bert().requires_grad_(False)


def batch_of(texts: list[str], side: str = "right", **arguments: Any) -> Any:
    tokenizer = tiny_models.tokenizer()
    tokenizer.padding_side = side
    return tokenizer(texts, padding=True, return_tensors="pt", **arguments)


def assert_tokens(found: Any, expected: Any, mask: Any) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found[mask != 0], expected[mask != 0], rtol=1e-4, atol=1e-5)
    assert not found[mask == 0].any(), "padding is zeros"


def counts(cached: Any) -> tuple[int, int]:
    stats = cached.cached.stats()
    return stats["hits"], stats["misses"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_padded_batches(model: Any, tmp_path: Path, side: str) -> None:
    cached = cache_tokens(model, tmp_path, outputs=["last_hidden_state"])
    batch = batch_of(TEXTS, side)
    for _ in range(2):
        found = cached(**batch)
        assert_tokens(found.last_hidden_state, model(**batch).last_hidden_state, batch["attention_mask"])
        assert found["last_hidden_state"] is found[0]
    assert counts(cached) == (10, 10)
    cached.cached.close()


def test_a_sample_is_found_however_much_it_is_padded(model: Any, tmp_path: Path) -> None:
    cached = cache_tokens(model, tmp_path)
    whole = cached(**batch_of(TEXTS)).last_hidden_state
    for at, text in enumerate(TEXTS):
        alone = cached(**batch_of([text])).last_hidden_state
        wide = cached(**batch_of([text], "left", pad_to_multiple_of=32)).last_hidden_state
        length = alone.shape[1]
        assert torch.equal(alone[0], whole[at, :length]) and torch.equal(wide[0, -length:], alone[0])
    assert counts(cached) == (20, 10)
    cached.cached.close()


def test_all_outputs_and_those_of_all_layers(model: Any, tmp_path: Path) -> None:
    cached = cache_tokens(model, tmp_path)
    batch = batch_of(TEXTS)
    expected = model(**batch, output_hidden_states=True)
    for _ in range(2):
        found = cached(**batch, output_hidden_states=True)
        assert set(found) == set(expected)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)
        assert len(found.hidden_states) == 3
        for layer, state in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert_tokens(layer, state, batch["attention_mask"])
    assert counts(cached) == (10, 10), "arguments of the model are part of the key"
    assert set(cached(**batch)) == {"last_hidden_state", "pooler_output"}
    assert counts(cached) == (10, 20)
    cached.cached.close()


def test_only_missing_samples_are_computed_at_their_own_length(model: Any, tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []
    # A hook is part of the model's configuration, so it is there from the start.
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    cached = cache_tokens(model, tmp_path)
    by_length = sorted(TEXTS, key=lambda text: len(text.split()))
    cached(**batch_of(by_length[-3:]))
    shapes.clear()
    cached(**batch_of(by_length))
    longest = batch_of(by_length[:-3])["input_ids"].shape[1]
    assert shapes == [(7, longest)]
    cached.cached.close()


def test_ids_of_the_caller(model: Any, tmp_path: Path) -> None:
    cached = cache_tokens(model, tmp_path)
    batch = batch_of(TEXTS[:3])
    first = cached(**batch, ids=["a", "b", "c"]).last_hidden_state
    again = cached(**batch, ids=["a", "b", "c"]).last_hidden_state
    assert torch.equal(first, again) and counts(cached) == (3, 3)
    cached(**batch, ids=["a", "b", "c"], variant=1)
    assert counts(cached) == (3, 6)
    cached.cached.close()


def test_other_tokens_and_other_types_of_tokens_miss(model: Any, tmp_path: Path) -> None:
    cached = cache_tokens(model, tmp_path)
    batch = batch_of(TEXTS[:2])
    cached(batch["input_ids"], batch["attention_mask"])
    cached(batch["input_ids"], batch["attention_mask"], token_type_ids=torch.zeros_like(batch["input_ids"]))
    cached(batch["input_ids"], batch["attention_mask"], token_type_ids=torch.ones_like(batch["input_ids"]))
    assert counts(cached) == (0, 6)
    cached(batch["input_ids"])
    rows = cached(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    assert_tokens(rows, model(batch["input_ids"], batch["attention_mask"]).last_hidden_state, batch["attention_mask"])
    cached.cached.close()


def test_what_has_no_row_per_token_is_refused(model: Any, tmp_path: Path) -> None:
    model.set_attn_implementation("eager")
    batch = batch_of(TEXTS)
    cached = cache_tokens(model, tmp_path)
    with pytest.raises(tc.InvalidError, match="pair of tokens"):
        cached(**batch, output_attentions=True)
    with pytest.raises(tc.InvalidError, match="attention_mask"):
        cached(batch["input_ids"], batch["attention_mask"][:, 1:])
    other = cache_tokens(model, tmp_path, outputs=["logits"])
    with pytest.raises(tc.InvalidError, match="no 'logits', but 'last_hidden_state'"):
        other(**batch)
    cached.cached.close()
    other.cached.close()


def test_a_trainable_model_is_refused_unless_it_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(tc.TrainableError):
        cache_tokens(tiny_models.bert(), tmp_path)(**batch_of(TEXTS))
    cached = cache_tokens(tiny_models.bert(), tmp_path, freeze=True, padding=-1.0)
    batch = batch_of(TEXTS)
    states = cached(**batch).last_hidden_state
    assert (states[batch["attention_mask"] == 0] == -1).all() and not states.requires_grad
    cached.cached.close()


def test_outputs_per_sample_need_no_helper(model: Any, tmp_path: Path) -> None:
    batch = batch_of(TEXTS)
    with tc.cache(model, tmp_path, module_id="bert") as cached:
        first, second = cached(**batch), cached(**batch)
        assert type(first) is type(second) is type(model(**batch))
        assert torch.equal(first.pooler_output, second.pooler_output)
        assert (cached.stats()["hits"], cached.stats()["misses"]) == (10, 10)
