"""Sentence embeddings that are computed once.

    model = tensorcask.integrations.sentence_transformers.cache(SentenceTransformer(...), "cache")
    embeddings = model.encode(sentences, normalize_embeddings=True)

The result is a ``SentenceTransformer`` of the same modules, whose ``encode``, ``encode_query`` and ``encode_document``
encode only sentences whose embeddings are not kept. Evaluators and other programs use it as any model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

try:
    from sentence_transformers import SentenceTransformer
except ImportError as error:
    raise ImportError(
        "tensorcask.integrations.sentence_transformers needs sentence-transformers: install it with "
        "`pip install tensorcask[sentence-transformers]`"
    ) from error

import numpy as np
import torch

import tensorcask
from tensorcask._errors import InvalidError
from tensorcask.integrations._sentence_rows import EncodedRows, identity, request
from tensorcask.integrations._sentence_settings import Encoding, bound, encoding, text_of

__all__ = ["cache"]

# Sentences per lookup: what an interrupted call has computed by then is kept.
_CHUNK = 4096


def cache(
    model: SentenceTransformer,
    folder: str | os.PathLike[str] | None,
    *,
    module_id: str = "sentence-transformer",
    version: str = "1",
    **options: Any,
) -> Any:
    """A ``SentenceTransformer`` that shares the modules of ``model`` and keeps each sentence's embedding.

    An embedding is found again if all that changes its value is equal: the text; the prompt; ``task`` and further
    arguments; ``output_value``, ``normalize_embeddings`` and ``truncate_dim``; the settings of the modules, such as
    pooling and ``max_seq_length``; weights and dtype; the architecture and the tokenizer. Wrap the model again after
    its tokenizer is replaced. ``batch_size``, ``device``, ``show_progress_bar`` and ``convert_to_*`` make no
    difference. ``precision`` is applied to the whole result, as ``encode`` does, so that the ranges of int8 cover it.

    Embeddings are those that the model computed in the batch of the first call. In other batches, rounding may differ
    in the last bits. Not cached, but computed as always: ``output_value=None``, and inputs other than texts and lists,
    tuples and dicts of texts.

    Besides the methods of the model there are ``stats``, ``contains``, ``why_miss``, ``verify``, ``end_epoch``,
    ``flush``, ``close``, ``disabled``, ``enabled``, ``folder``, ``module_id`` and ``unwrap``, as those of
    ``tensorcask.cache``.

    Args:
        model: The model. It is not changed, and may be trained further: its weights are checked by each call.
        folder: The folder of the embeddings; ``None`` keeps them in memory.
        module_id: The name of the folder inside ``folder``. Models with different weights may share it.
        version: The version of the code of modules that are not part of a library.
        options: Further options of ``tensorcask.cache``.

    Raises:
        InvalidError: ``model`` is no ``SentenceTransformer``, or is cached already.
    """
    if not isinstance(model, SentenceTransformer):
        raise InvalidError(f"the model is a {type(model).__name__}: pass a SentenceTransformer")
    if isinstance(model, _CachedEncode):
        raise InvalidError("the model is cached already: pass model.unwrap() to cache it in another way")
    cached: Any = object.__new__(_class_of(type(model)))
    # Both objects have one state: settings of either are those of the other.
    object.__setattr__(cached, "__dict__", model.__dict__)
    object.__setattr__(cached, "_tensorcask", _State(model, folder, module_id, version, options))
    return cached


class _State:
    """The cache of a model, and the arguments that made it."""

    def __init__(self, model: Any, folder: Any, module_id: str, version: str, options: dict[str, Any]) -> None:
        self.model = model
        self.remake: Any = functools.partial(cache, folder=folder, module_id=module_id, version=version, **options)
        # The settings that the structure consists of may change between calls, and are part of each call's key.
        arguments = {**identity(model), **options.pop("arguments", {})}
        self.rows: Any = tensorcask.cache(
            EncodedRows(model),
            folder,
            module_id=module_id,
            version=version,
            arguments=arguments,
            check_structure=False,
            enforce_stateless=False,
            lists="each",
            **options,
        )


class _CachedEncode:
    """``encode`` with a cache, and the methods of a cache. It comes before the class of the model."""

    _tensorcask: _State

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Embeddings of inputs, as the model's own ``encode`` returns them. Missing ones are computed."""
        state = self._tensorcask
        original = functools.partial(type(state.model).encode, state.model)
        inputs, arguments = bound(state.model.encode, args, kwargs)
        is_single = _is_single(state.model, inputs)
        listed = [inputs] if is_single else inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
        how = encoding(state.model, arguments) if listed else None
        texts = [text_of(item) for item in listed] if how is not None else []
        if how is None or any(text is None for text in texts):
            return original(listed[0] if is_single else listed, **arguments)
        ids = tensorcask.digest([text for text in texts if text is not None])
        rows = _rows(state, listed, ids, how)
        result = _converted(rows, how)
        return result[0] if is_single else result

    def contains(self, inputs: Any, **arguments: Any) -> list[bool]:
        """Whether the embedding of each input is kept, for these arguments of ``encode``."""
        ids, how, places = self._query(inputs, arguments)
        found: list[bool] = self._tensorcask.rows.contains(places, ids=ids, key=how.key)
        return found

    def why_miss(self, inputs: Any, **arguments: Any) -> Any:
        """Why the embedding of one input is not kept, for these arguments of ``encode``."""
        ids, how, places = self._query(inputs, arguments)
        return self._tensorcask.rows.why_miss(places, ids=ids, key=how.key)

    def _query(self, inputs: Any, arguments: dict[str, Any]) -> tuple[list[str], Encoding, torch.Tensor]:
        model = self._tensorcask.model
        inputs, named = bound(model.encode, (inputs,), arguments)
        listed = [inputs] if _is_single(model, inputs) else list(inputs)
        how, texts = encoding(model, named), [text_of(item) for item in listed]
        if how is None or any(text is None for text in texts):
            raise InvalidError("embeddings of these inputs or arguments are not cached: see the documentation of cache")
        ids = tensorcask.digest([text for text in texts if text is not None])
        return ids, how, torch.zeros(len(listed), 2, dtype=torch.int64)

    def stats(self) -> dict[str, Any]:
        """Counts since wrapping: hits, misses and others."""
        counts: dict[str, Any] = self._tensorcask.rows.stats()
        return counts

    def end_epoch(self) -> dict[str, Any]:
        """Ends an epoch: logs the counts since the last one as one line, and returns them."""
        counts: dict[str, Any] = self._tensorcask.rows.end_epoch()
        return counts

    def verify(self, share: float | None = 0.01, **tolerances: Any) -> None:
        """Computes this share of the hits again, from now on, and compares."""
        self._tensorcask.rows.verify(share, **tolerances)

    def flush(self) -> None:
        """Returns when all embeddings computed so far are written."""
        self._tensorcask.rows.flush()

    def close(self) -> None:
        """Flushes, and closes the cache. Later calls of ``encode`` raise ``InvalidError``."""
        self._tensorcask.rows.close()

    def disabled(self) -> AbstractContextManager[None]:
        """A context in which all sentences are encoded."""
        context: AbstractContextManager[None] = self._tensorcask.rows.disabled()
        return context

    @property
    def enabled(self) -> bool:
        """Whether the cache is on."""
        return bool(self._tensorcask.rows.enabled)

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._tensorcask.rows.enabled = enabled

    @property
    def folder(self) -> str | None:
        """The folder of the embeddings; ``None`` if they are in memory."""
        found: str | None = self._tensorcask.rows.folder
        return found

    @property
    def module_id(self) -> str:
        """The name of the folder of all identities of the model."""
        return str(self._tensorcask.rows.module_id)

    def unwrap(self) -> Any:
        """The model without the cache."""
        return self._tensorcask.model

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "enabled":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        return self._tensorcask.remake, (self._tensorcask.model,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        return self._tensorcask.remake(copy.deepcopy(self._tensorcask.model, memo))


@functools.lru_cache(maxsize=None)
def _class_of(model: type) -> Any:
    """A subclass of a model's class whose ``encode`` is cached."""
    body = {"__slots__": ("_tensorcask",), "__module__": __name__, "__doc__": model.__doc__}
    return type(f"Cached{model.__name__}", (_CachedEncode, model), body)


def _is_single(model: Any, inputs: Any) -> bool:
    if hasattr(model, "is_singular_input"):
        return bool(model.is_singular_input(inputs))
    return isinstance(inputs, str) or not hasattr(inputs, "__len__")


def _rows(state: _State, inputs: list[Any], ids: Sequence[str], how: Encoding) -> Any:
    """Embeddings in the order of the inputs: a tensor, or a list of tensors."""
    device = how.running.get("device")
    if how.as_numpy:
        device = "cpu"
    elif device is None or isinstance(device, list):
        device = state.model.device
    if len(inputs) <= _CHUNK or how.running.get("pool") is not None:
        return _lookup(state, inputs, ids, how, device)
    # Long sentences come first, as in `encode`, so that a chunk has sentences of similar lengths.
    order = sorted(range(len(inputs)), key=lambda at: -_length(inputs[at]))
    parts = [
        _lookup(state, [inputs[at] for at in chunk], [ids[at] for at in chunk], how, device)
        for chunk in _chunks(order, _CHUNK)
    ]
    if how.is_token_wise:
        unordered = [row for part in parts for row in part]
        back = sorted(range(len(order)), key=order.__getitem__)
        return [unordered[at] for at in back]
    result = torch.empty((len(inputs), *parts[0].shape[1:]), dtype=parts[0].dtype, device=parts[0].device)
    result[torch.as_tensor(order, device=result.device)] = torch.cat(parts)
    return result


def _lookup(state: _State, inputs: list[Any], ids: Sequence[str], how: Encoding, device: Any) -> Any:
    with request(inputs, how) as number:

        def load(positions: list[int]) -> torch.Tensor:
            return torch.tensor([[number, position] for position in positions], dtype=torch.int64)

        return state.rows.lazy(list(ids), load, kwargs={"key": how.key}, device=device)


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    return (order[start : start + size] for start in range(0, len(order), size))


def _length(item: Any) -> int:
    if isinstance(item, dict):
        return sum(map(_length, item.values()))
    if isinstance(item, (list, tuple)):
        return sum(map(_length, item))
    return len(item) if isinstance(item, str) else 0


def _converted(rows: Any, how: Encoding) -> Any:
    """Embeddings in the container that the arguments of ``encode`` ask for."""
    if how.is_token_wise:
        return list(rows)
    if how.precision != "float32":
        from sentence_transformers import quantize_embeddings

        precision: Any = how.precision
        quantized = quantize_embeddings(list(rows), precision=precision)
        if how.as_tensor:
            return torch.from_numpy(quantized)
        return quantized if how.as_numpy else [torch.from_numpy(row) for row in quantized]
    if how.as_tensor:
        return rows
    if how.as_numpy:
        return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return list(rows)
