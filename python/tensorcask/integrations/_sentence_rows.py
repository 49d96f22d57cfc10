"""The computation behind cached sentences: it encodes those whose embeddings are missing."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tensorcask import digest
from tensorcask.integrations._sentence_settings import Encoding

# Of a configuration of transformers: what does not change outputs.
_NOT_CONFIGURATION = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache")
# Of a tokenizer: state that each call sets.
_NOT_TOKENIZER = ("truncation", "padding")


@dataclass(frozen=True)
class _Request:
    """The inputs of a call that is being computed."""

    inputs: list[Any]
    encoding: Encoding


_requests: dict[int, _Request] = {}
_numbers = itertools.count()
_lock = threading.Lock()


@contextlib.contextmanager
def request(inputs: list[Any], encoding: Encoding) -> Iterator[int]:
    """Makes inputs known to ``EncodedRows`` under a number, as only tensors are passed to a cached module."""
    with _lock:
        number = next(_numbers)
        _requests[number] = _Request(inputs, encoding)
    try:
        yield number
    finally:
        with _lock:
            del _requests[number]


class EncodedRows(torch.nn.Module):
    """Encodes inputs of requests. It has the submodules of ``model``, so their weights are part of the identity."""

    # Attributes of a module describe it. The model is none of them: its modules alone are, each of them once.
    __slots__ = ("_model",)

    def __init__(self, model: Any) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        # The dict itself: a module that is replaced later is seen.
        self._modules = model._modules
        # Embeddings do not depend on it: `encode` always runs in evaluation mode.
        self.training = False

    def forward(self, places: torch.Tensor, key: str) -> Any:
        """Embeddings of the inputs at ``places [n, 2]`` (numbers of requests, and positions in them).

        Returns a tensor ``[n, dims]``, or a list of tensors ``[tokens, dims]``. ``key`` is the text of all settings.
        """
        numbers, positions = places[:, 0].tolist(), places[:, 1].tolist()
        encoding = _requests[numbers[0]].encoding
        inputs = [_requests[number].inputs[at] for number, at in zip(numbers, positions, strict=True)]
        arguments = {**encoding.values, **encoding.running, "convert_to_tensor": not encoding.is_token_wise}
        model: Any = object.__getattribute__(self, "_model")
        return type(model).encode(model, inputs, **arguments)


def identity(model: Any) -> dict[str, str]:
    """What tells models with the same weights apart: the classes of modules, configurations and tokenizers."""
    parts = {"architecture": "\n".join(_line(path, module) for path, module in model.named_modules())}
    for path, module in model.named_modules():
        tokenizer = getattr(module, "tokenizer", None) if path else None
        if tokenizer is not None and not callable(getattr(type(tokenizer), "forward", None)):
            parts[f"tokenizer {path}"] = digest([_tokenizer(tokenizer)])[0]
        config = getattr(module, "config", None)
        if path and hasattr(config, "to_dict") and not _is_inside(model, path):
            parts[f"configuration {path}"] = digest([_configuration(config)])[0]
    return parts


def _is_inside(model: Any, path: str) -> bool:
    """Whether a module above ``path`` has the configuration already."""
    parent = path.rpartition(".")[0]
    return bool(parent) and hasattr(getattr(model.get_submodule(parent), "config", None), "to_dict")


def _line(path: str, module: Any) -> str:
    # The representation of a module of the library contains settings, which are part of each call's key.
    shown = "" if hasattr(module, "get_config_dict") or len(list(module.children())) else module.extra_repr()
    return f"{path}: {type(module).__module__}.{type(module).__qualname__}({shown})"


def _configuration(config: Any) -> str:
    values: Mapping[str, Any] = config.to_dict()
    kept = {name: value for name, value in values.items() if name not in _NOT_CONFIGURATION}
    return json.dumps(kept, sort_keys=True, default=str)


def _tokenizer(tokenizer: Any) -> str:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        described = json.loads(backend.to_str())
        for name in _NOT_TOKENIZER:
            described.pop(name, None)
        return json.dumps(described, sort_keys=True)
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return json.dumps([type(tokenizer).__qualname__, vocabulary], sort_keys=True, default=str)
