"""Outputs per token of models of ``transformers``, kept without padding.

Models whose outputs have one row per sample need no helper: ``tensorcask.cache(model, folder)`` keeps a ``ModelOutput``
as it is. ``cache_tokens`` is for outputs ``[batch, tokens, …]`` of batches that are padded to their longest sample:

    encoder = tensorcask.integrations.transformers.cache_tokens(model, "cache", freeze=True)
    states = encoder(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state

A sample is found in any batch, however much that one is padded, and takes the space of its own tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

try:
    from transformers.utils.generic import ModelOutput
except ImportError as error:
    raise ImportError(
        "tensorcask.integrations.transformers needs transformers: install it with "
        "`pip install tensorcask[transformers]`"
    ) from error

import torch

import tensorcask
from tensorcask._errors import InvalidError

__all__ = ["CachedTokens", "cache_tokens"]


def cache_tokens(
    model: torch.nn.Module,
    folder: str | os.PathLike[str] | None,
    *,
    module_id: str | None = None,
    outputs: Sequence[str] | None = None,
    padding: float = 0.0,
    **options: Any,
) -> CachedTokens:
    """A module with the outputs of ``model``, whose rows per token are kept without padding.

    Args:
        model: A frozen model that takes ``input_ids [n, tokens]`` and ``attention_mask [n, tokens]``, and further
            tensors ``[n, tokens]`` by name, and returns a ``ModelOutput`` or a dict.
        folder: The folder of the outputs; ``None`` keeps them in memory.
        module_id: The name of the folder inside ``folder``; by default the name of the model's class.
        outputs: The names of the outputs that are kept and returned; by default all tensors and tuples of tensors.
        padding: The value of padding in results. The model's own outputs have values without meaning there.
        options: Further options of ``tensorcask.cache``, such as ``freeze=True``.

    Raises:
        TrainableError: The model has parameters that require gradients, and ``freeze`` is not given.
    """
    inner = _TokenRows(model, None if outputs is None else tuple(outputs))
    module_id = type(model).__name__ if module_id is None else module_id
    return CachedTokens(tensorcask.cache(inner, folder, module_id=module_id, lists="each", **options), padding)


class CachedTokens(torch.nn.Module):
    """A cached model of outputs per token. ``cache_tokens`` makes it.

    ``cached`` is the cached module, with ``stats``, ``flush``, ``close`` and the other methods of a cache.
    """

    def __init__(self, cached: Any, padding: float) -> None:
        super().__init__()
        self.cached = cached
        self.padding = padding

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        ids: Any = None,
        variant: int = 0,
        **kwargs: Any,
    ) -> ModelOutput:
        """The outputs of a padded batch: rows per token as ``[n, tokens, …]``, others as ``[n, …]``.

        Args:
            input_ids: ``[n, tokens]``.
            attention_mask: ``[n, tokens]``, not 0 for tokens; padding may be on either side. By default all are tokens.
            ids: One id per sample; by default the tokens themselves, without padding.
            variant: The variant of the samples.
            kwargs: Further inputs of the model. Tensors ``[n, tokens]`` are part of the tokens.

        Raises:
            InvalidError: ``input_ids`` and ``attention_mask`` differ in shape.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.dim() != 2 or mask.shape != input_ids.shape:
            raise InvalidError(
                f"input_ids have shape {list(input_ids.shape)} and attention_mask {list(mask.shape)}: pass both as "
                "[samples, tokens]"
            )
        tokens = {"input_ids": input_ids, **{name: value for name, value in kwargs.items() if _is_like(value, mask)}}
        if ids is None:
            ids = _token_ids(tokens, mask)
        kept = self.cached(input_ids, mask, ids=ids, variant=variant, **kwargs)
        make: Any = ModelOutput
        output: ModelOutput = make(**{name: self._padded(value, mask) for name, value in kept.items()})
        return output

    def _padded(self, value: Any, mask: torch.Tensor) -> Any:
        if isinstance(value, tuple):
            return tuple(self._padded(item, mask) for item in value)
        if isinstance(value, dict):
            flat = torch.cat(list(value["tokens"])) if len(mask) else None
            if flat is None:
                return mask.new_empty(0)
            padded = flat.new_full((*mask.shape, *flat.shape[1:]), self.padding)
            padded[mask.to(flat.device) != 0] = flat
            return padded
        return value


class _TokenRows(torch.nn.Module):
    """Splits outputs per token into one tensor per sample, ``{"tokens": [[tokens, …], …]}``."""

    def __init__(self, model: torch.nn.Module, outputs: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        # Samples that are found have gone, so the longest of those that are left may be shorter.
        used = (attention_mask != 0).any(0).nonzero().flatten()
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, attention_mask.shape[1])

        def cut(value: Any) -> Any:
            return value[:, first:last] if _is_like(value, attention_mask) else value

        mask = cut(attention_mask)
        result = self.model(
            input_ids=cut(input_ids), attention_mask=mask, **{name: cut(value) for name, value in kwargs.items()}
        )
        if not hasattr(result, "items"):
            raise InvalidError(
                f"the model returns a {type(result).__name__}: outputs need names; pass return_dict=True"
            )
        items = dict(result.items())
        names = [name for name, value in items.items() if _is_tensors(value)] if self.outputs is None else self.outputs
        missing = [name for name in names if name not in items]
        if missing:
            raise InvalidError(f"the model returns no {missing[0]!r}, but {', '.join(map(repr, items))}")
        return {name: _split(name, items[name], mask) for name in names}


def _is_tensors(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(map(_is_tensors, value))
    return isinstance(value, torch.Tensor)


def _is_like(value: Any, mask: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape


def _split(name: str, value: Any, mask: torch.Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_split(name, item, mask) for item in value)
    count, tokens = mask.shape
    if value.dim() > 2 and value.shape[-2:] == (tokens, tokens) and tokens != value.shape[1]:
        raise InvalidError(
            f"the output {name!r} has shape {list(value.shape)}, with a row for each pair of tokens, whose padding "
            f"cannot be left out: name the wanted ones as `outputs`, without {name!r}"
        )
    if value.shape[:2] == (count, tokens):
        return {"tokens": [row[of != 0] for row, of in zip(value, mask, strict=True)]}
    return value


def _token_ids(tokens: dict[str, torch.Tensor], mask: torch.Tensor) -> list[str]:
    """One id per sample, of all its inputs per token, without padding."""
    names = sorted(tokens)
    kept = (mask != 0).cpu()
    arrays = [tokens[name].detach().cpu().contiguous() for name in names]
    # The values of the mask count too: some models take others than 0 and 1.
    arrays.append(mask.detach().cpu().contiguous())
    header = "|".join(f"{name}:{array.dtype}" for name, array in zip([*names, "mask"], arrays, strict=True)).encode()
    contents: list[str | bytes] = []
    for at in range(len(mask)):
        parts = [array[at][kept[at]].numpy().tobytes() for array in arrays]
        contents.append(b"".join([header, *(len(part).to_bytes(8, "little") + part for part in parts)]))
    return list(tensorcask.digest(contents))
