"""Cached sentences give what ``SentenceTransformer.encode`` gives."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")
sentence_transformers = pytest.importorskip("sentence_transformers")
import tiny_models  # noqa: E402

import tensorcask as tc  # noqa: E402

cache = tc.integrations.sentence_transformers.cache
TEXTS = tiny_models.sentences(12)
PROMPTS = {"query": "the words of", "document": ""}


@pytest.fixture(scope="module")
def folder_of_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture
def model(folder_of_model: Path) -> Any:
    return tiny_models.sentence_transformer(folder_of_model, prompts=dict(PROMPTS))


@pytest.fixture
def cached(model: Any, tmp_path: Path) -> Iterator[Any]:
    cached = cache(model, tmp_path / "cache")
    yield cached
    cached.close()


def counts(cached: Any) -> tuple[int, int]:
    stats = cached.stats()
    return stats["hits"], stats["misses"]


def assert_same(a: Any, b: Any) -> None:
    """The same types, dtypes and shapes, and values up to rounding: batches are padded to other lengths."""
    assert type(a) is type(b)
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
        return
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = (torch.as_tensor(x) for x in (a, b))
    if a.dtype.is_floating_point:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    else:
        assert (a.int() - b.int()).abs().max() <= 1


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
    {"normalize_embeddings": True},
    {"truncate_dim": 5, "normalize_embeddings": True},
    {"prompt": "every model reads"},
    {"prompt_name": "query", "convert_to_tensor": True},
    {"output_value": "token_embeddings"},
    {"output_value": "token_embeddings", "prompt_name": "query"},
    {"precision": "binary"},
    {"precision": "ubinary", "convert_to_tensor": True},
    {"precision": "int8", "convert_to_numpy": False},
    {"batch_size": 3, "show_progress_bar": False, "device": "cpu"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_results_are_those_of_encode(model: Any, cached: Any, arguments: dict[str, Any]) -> None:
    for inputs in (TEXTS, TEXTS[3], TEXTS[:1], [TEXTS[5], TEXTS[2], TEXTS[5]]):
        if len(inputs) != len(TEXTS) and "precision" in arguments:
            continue  # Ranges need more than one embedding.
        expected = model.encode(inputs, **arguments)
        first = cached.encode(inputs, **arguments)
        assert_same(first, expected)
        second = cached.encode(inputs, **arguments)
        assert type(second) is type(first)
        for a, b in zip(first, second, strict=True):
            assert numpy.array_equal(a, b), "hits have the bits of the first result"
    assert counts(cached)[1] == len(TEXTS)


def test_only_missing_sentences_are_encoded(model: Any, cached: Any) -> None:
    encoded: list[int] = []
    hook = model[0].register_forward_pre_hook(lambda module, args: encoded.append(len(args[0]["input_ids"])))
    cached.encode(TEXTS[:5])
    cached.encode([*TEXTS[3:8], TEXTS[3]])
    hook.remove()
    assert encoded == [5, 3]
    assert counts(cached)[1] == 8


def test_what_does_not_change_values_does_not_miss(cached: Any) -> None:
    cached.encode(TEXTS)
    cached.encode(TEXTS, batch_size=1, convert_to_tensor=True, show_progress_bar=False, device="cpu")
    cached.encode(TEXTS, precision="int8")
    cached.encode(TEXTS, prompt="")
    cached.encode(tuple(TEXTS), convert_to_numpy=False)
    cached.encode(numpy.array(TEXTS))
    cached.encode(sentences=TEXTS) if "sentences" in str(type(cached).encode) else cached.encode(inputs=TEXTS)
    assert counts(cached) == (6 * len(TEXTS), len(TEXTS))


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "once"}, {"prompt_name": "query"}, {"normalize_embeddings": True}, {"truncate_dim": 8},
        {"output_value": "token_embeddings"}, {"task": "query"},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_change_values_miss(cached: Any, arguments: dict[str, Any]) -> None:
    cached.encode(TEXTS)
    cached.encode(TEXTS, **arguments)
    cached.encode(TEXTS, **arguments)
    assert counts(cached) == (len(TEXTS), 2 * len(TEXTS))


def change_weights(model: Any) -> None:
    with torch.no_grad():
        model[0].auto_model.embeddings.LayerNorm.bias[0] += 1


CHANGES = {
    "weights": change_weights,
    "dtype": lambda model: model.to(torch.bfloat16),
    "max_seq_length": lambda model: setattr(model, "max_seq_length", 4),
    "pooling": lambda model: setattr(model[1], "include_prompt", False),
    "truncate_dim": lambda model: setattr(model, "truncate_dim", 3),
    "default_prompt_name": lambda model: setattr(model, "default_prompt_name", "query"),
    "prompts": lambda model: model.prompts.update({"query": "once"}) or setattr(model, "default_prompt_name", "query"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_seen(model: Any, cached: Any, change: str) -> None:
    cached.encode(TEXTS)
    CHANGES[change](model)
    result = cached.encode(TEXTS)
    assert_same(result, model.encode(TEXTS)) if change != "dtype" else None
    assert counts(cached) == (0, 2 * len(TEXTS))


def test_bfloat16_embeddings(model: Any, cached: Any) -> None:
    model.to(torch.bfloat16)
    for arguments in ({}, {"convert_to_tensor": True}):
        expected = model.encode(TEXTS, **arguments)
        first, second = cached.encode(TEXTS, **arguments), cached.encode(TEXTS, **arguments)
        assert type(first) is type(expected) and first.dtype == expected.dtype
        assert bool((first == second).all())
    assert counts(cached) == (3 * len(TEXTS), len(TEXTS))


def test_queries_and_documents(model: Any, cached: Any) -> None:
    if not hasattr(model, "encode_query"):
        pytest.skip("this release has no encode_query")
    for name in ("encode_query", "encode_document"):
        assert_same(getattr(cached, name)(TEXTS), getattr(model, name)(TEXTS))
        getattr(cached, name)(TEXTS)
    assert counts(cached) == (2 * len(TEXTS), 2 * len(TEXTS))


def test_int8_ranges_cover_the_whole_result(model: Any, cached: Any) -> None:
    texts = tiny_models.sentences(120)
    cached.encode(texts[:60])
    assert_same(cached.encode(texts, precision="int8"), model.encode(texts, precision="int8"))
    assert counts(cached)[1] == 120


def test_what_cannot_be_cached_is_computed(model: Any, cached: Any) -> None:
    expected, found = (of.encode(TEXTS[:3], output_value=None) for of in (model, cached))
    assert [set(item) for item in found] == [set(item) for item in expected]
    assert_same(cached.encode([]), model.encode([]))
    assert counts(cached) == (0, 0)


def test_errors_are_those_of_encode(model: Any, cached: Any) -> None:
    cached.encode(TEXTS)
    for arguments in ({"prompt_name": "other"}, {"precision": "int3"}, {"unknown": 1}, {"batch_size": 0}):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            model.encode(TEXTS, **arguments)
        with pytest.raises(type(expected.value)) as found:
            cached.encode(TEXTS, **arguments)
        assert str(found.value) == str(expected.value)


def test_pairs_and_singles_are_told_apart(model: Any, cached: Any) -> None:
    pairs = [(TEXTS[1], TEXTS[2]), (TEXTS[2], TEXTS[1])]
    assert_same(cached.encode(pairs), model.encode(pairs))
    cached.encode(pairs)
    assert counts(cached) == (2, 2)


def test_large_calls_are_computed_in_chunks(model: Any, cached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tc.integrations.sentence_transformers, "_CHUNK", 5)
    for arguments in ({}, {"output_value": "token_embeddings"}):
        expected = model.encode(TEXTS, **arguments)
        for _ in range(2):
            assert_same(cached.encode(TEXTS, **arguments), expected)
    assert counts(cached) == (2 * len(TEXTS), 2 * len(TEXTS))


def test_a_new_process_finds_the_sentences(cached: Any, folder_of_model: Path, tmp_path: Path) -> None:
    expected = cached.encode(TEXTS)
    cached.flush()
    script = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy, tiny_models, tensorcask as tc
model = tiny_models.sentence_transformer(pathlib.Path({str(folder_of_model)!r}), prompts={PROMPTS!r})
cached = tc.integrations.sentence_transformers.cache(model, {str(tmp_path / "cache")!r})
numpy.save({str(tmp_path / "found.npy")!r}, cached.encode(tiny_models.sentences(12)))
assert (cached.stats()["hits"], cached.stats()["misses"]) == (12, 0), cached.stats()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)
    assert numpy.array_equal(numpy.load(tmp_path / "found.npy"), expected)


def test_it_is_a_sentence_transformer(model: Any, cached: Any) -> None:
    assert isinstance(cached, sentence_transformers.SentenceTransformer)
    assert len(cached) == 2 and cached[1] is model[1]
    assert list(cached.state_dict()) == list(model.state_dict())
    cached.max_seq_length = 9
    assert model.max_seq_length == 9 and cached.unwrap() is model
    embeddings = cached.encode(TEXTS)
    assert cached.similarity(embeddings, embeddings).shape == (12, 12)
    assert not hasattr(model, "_tensorcask")
    with pytest.raises(tc.InvalidError, match="already"):
        cache(cached, None)
    with pytest.raises(tc.InvalidError, match="Linear"):
        cache(torch.nn.Linear(1, 1), None)


def test_the_model_may_be_trained_further(model: Any, cached: Any) -> None:
    cached.encode(TEXTS)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert parameters, "wrapping does not freeze the model"
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    model.train()
    model(model.tokenize(TEXTS[:4]))["sentence_embedding"].sum().backward()
    optimizer.step()
    assert_same(cached.encode(TEXTS), model.encode(TEXTS))
    assert counts(cached) == (0, 2 * len(TEXTS))


def test_copies_share_the_folder(cached: Any) -> None:
    cached.encode(TEXTS)
    cached.flush()
    for other in (pickle.loads(pickle.dumps(cached)), copy.deepcopy(cached)):
        assert other[0] is not cached[0]
        other.encode(TEXTS)
        assert counts(other) == (len(TEXTS), 0)
        other.close()


def test_methods_of_the_cache(cached: Any) -> None:
    assert cached.contains(TEXTS[:2]) == [False, False]
    cached.encode(TEXTS[:1])
    assert cached.contains(TEXTS[:2]) == [True, False]
    assert cached.contains(TEXTS[:2], normalize_embeddings=True) == [False, False]
    assert cached.why_miss(TEXTS[0]).kept and not cached.why_miss(TEXTS[1]).kept
    with pytest.raises(tc.InvalidError):
        cached.contains(TEXTS[:2], output_value=None)
    with cached.disabled():
        cached.encode(TEXTS[:1])
    assert counts(cached) == (0, 1)
    cached.enabled = False
    assert not cached.enabled
    cached.enabled = True
    assert cached.end_epoch()["misses"] == 1
    assert Path(cached.folder).is_dir() and cached.module_id == "sentence-transformer"
    cached.verify(1.0)
    cached.encode(TEXTS[:1])
    assert cached.stats()["verified"] == 1
    cached.close()
    with pytest.raises(tc.InvalidError):
        cached.encode(TEXTS)


@pytest.mark.skipif("TENSORCASK_MODELS" not in os.environ, reason="needs the models of the examples")
def test_a_published_model(tmp_path: Path) -> None:
    path = Path(os.environ["TENSORCASK_MODELS"]) / "all-MiniLM-L6-v2"
    model = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    cached = cache(model, tmp_path)
    texts = ["A frozen model.", "It does not change.", "Every sample has a stable key."]
    expected = model.encode(texts)
    numpy.testing.assert_allclose(cached.encode(texts), expected, atol=1e-6)
    numpy.testing.assert_array_equal(cached.encode(texts), cached.encode(texts))
    assert cached.stats()["misses"] == 3
    cached.close()
