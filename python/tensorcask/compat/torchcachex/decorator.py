"""A module whose outputs are cached, sample by sample."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..._errors import InvalidError, TensorcaskWarning, TrainableError
from ..._torch_state import is_exporting, is_symbolic, not_compiled
from .._weights import Weights, variables_of
from ._batches import OutputSplitter, select_inputs, tensors_in, to_device
from ._schema import replace_text
from .backend import ArrowIPCCacheBackend
from .utils import _tree_stack

logger = logging.getLogger(__name__)


class TrainableModuleError(TrainableError, RuntimeError):
    """The wrapped module has parameters that require gradients, in training mode with `enforce_stateless`."""


class CacheModuleDecorator(nn.Module):
    """Wraps a module, and returns kept outputs for samples whose ids were seen before.

    A call looks all ids up at once, runs the module without gradients on the samples that are missing, puts their
    outputs into the backend, and returns the batch in the order of the ids, on the device of the inputs. A sample's
    output may be a tensor or a nested dict, list or tuple of tensors and plain values. Outputs of several shapes are
    returned as a list.

    The ids are taken from the keyword argument `cache_ids`, else from `args[0]["cache_ids"]` if that is a dict, else
    from `key_from_batch_fn(*args, **kwargs)`. The keyword argument is not passed on to the module.

    The first positional argument is the batch: a tensor, or a dict of tensors and lists. Other arguments are passed on
    whole. If one of them has as many rows as there are samples, the module runs on the whole batch.

    The module's weights are compared with those that filled the cache. If they differ, a warning says so once.

    Args:
        module: the module.
        cache_backend: where outputs are kept. Several decorators may share one.
        enabled: if false, calls go to the module, with gradients.
        key_from_batch_fn: returns the ids of a batch, from the arguments of the call.
        enforce_stateless: whether parameters that require gradients are an error in training mode.
        map_location_on_read: the device that cached values are read to, before they go to the device of the inputs.
    """

    def __init__(
        self,
        module: nn.Module,
        cache_backend: ArrowIPCCacheBackend,
        enabled: bool = True,
        key_from_batch_fn: Callable[..., Any] | None = None,
        enforce_stateless: bool = True,
        map_location_on_read: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.module = module
        self.cache = cache_backend
        self.enabled = enabled
        self.key_from_batch_fn = key_from_batch_fn
        self.enforce_stateless = enforce_stateless
        self.map_location_on_read = map_location_on_read
        self._outputs = OutputSplitter()
        self._weights: Weights | None = Weights(self._variables)
        logger.info(
            "Decorated module: %s (cache_key: %s, enabled: %s)",
            type(module).__name__, getattr(cache_backend, "module_id", None), enabled,
        )  # fmt: skip

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's outputs, kept or computed.

        Raises:
            ValueError: there are no ids.
            InvalidError: the number of ids is not the number of samples, or an output has another number of rows.
            RuntimeError: the module is trainable, in training mode with `enforce_stateless`.
        """
        passed = {name: value for name, value in kwargs.items() if name != "cache_ids"}
        if not self.enabled or is_exporting():
            return self.module(*args, **passed)
        return self._looked_up(args, kwargs, passed)

    @not_compiled
    def _looked_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], passed: dict[str, Any]) -> Any:
        if is_symbolic(args, passed):
            # Tracers and transforms hand over tensors without values, which have no outputs to keep.
            return self.module(*args, **passed)
        ids, _ = self._extract_keys(args, kwargs)
        if args and torch.is_tensor(args[0]) and args[0].ndim and args[0].shape[0] != len(ids):
            raise InvalidError(f"{len(ids)} cache ids were passed for {args[0].shape[0]} samples: pass one id a sample")
        self._refuse_trainable()
        self._check_weights()
        results, missing = self.cache.get_batch(ids, map_location=self.map_location_on_read)
        if missing:
            computed = self._compute(args, passed, missing, len(ids))
            self.cache.put_batch({ids[at]: output for at, output in zip(missing, computed, strict=True)})
            for at, output in zip(missing, computed, strict=True):
                results[at] = output
        reference = next(tensors_in((args, passed)), None)
        device = torch.device("cpu") if reference is None else reference.device
        if missing and device.type != "cpu":
            # Kept and computed samples are on different devices.
            results = [to_device(result, device) for result in results]
        return to_device(_tree_stack(results), device)

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], missing: list[int], count: int) -> list[Any]:
        selected = args if len(missing) == count else select_inputs(args, kwargs, missing, count)
        with torch.no_grad():
            output = self.module(*(args if selected is None else selected), **kwargs)
        if any(tensor.device.type == "mps" for tensor in tensors_in(output)):
            # Copies of tensors that are still being computed can hang.
            torch.mps.synchronize()
        if selected is not None:
            return self._outputs.split(output, len(missing))
        samples = self._outputs.split(output, count)
        return [samples[at] for at in missing]

    def _extract_keys(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], list[int]]:
        """The ids of a call, and their positions."""
        if kwargs.get("cache_ids") is not None:
            ids = kwargs["cache_ids"]
        elif args and isinstance(args[0], Mapping) and "cache_ids" in args[0]:
            ids = args[0]["cache_ids"]
        elif self.key_from_batch_fn is not None:
            ids = self.key_from_batch_fn(*args, **kwargs)
        else:
            raise ValueError(
                "CacheModuleDecorator requires `cache_ids`, one id a sample: pass them as a keyword argument or in the "
                "batch dict, or provide `key_from_batch_fn`"
            )
        if isinstance(ids, (str, bytes)):
            raise InvalidError(f"the cache ids are {ids!r}, which is one id: pass a list with one id a sample")
        keys = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return keys, list(range(len(keys)))

    def _refuse_trainable(self) -> None:
        if not (self.enforce_stateless and self.training):
            return
        trainable = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        if trainable:
            raise TrainableModuleError(
                f"the wrapped module has trainable parameters while caching is enabled, {len(trainable)} in all, such "
                f"as {trainable[0]!r}: freeze it with `module.requires_grad_(False)`, or set enforce_stateless=False"
            )

    def _check_weights(self) -> None:
        """Warns if the cache was filled with other weights."""
        if self._weights is None or not isinstance(self.cache, ArrowIPCCacheBackend) or not self._weights.changed():
            return
        record = self.cache.cache_dir / "weights.json"
        try:
            digest = self._weights.digest()
        except InvalidError:
            # Variables without values, such as those of lazy modules, get them in the first call.
            return
        try:
            filled_with = json.loads(record.read_text())["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            if self.cache.current_rank == self.cache.writer_rank:
                replace_text(record, json.dumps({"module": type(self.module).__qualname__, "digest": digest}) + "\n")
            return
        if filled_with != digest:
            # Weights that change in each step are not compared in each step.
            self._weights = None
            warnings.warn(
                f"{type(self.module).__name__} has other weights than the module that filled {self.cache.cache_dir}. "
                "Outputs of those are returned for ids that are in the cache: use another module_id for other weights, "
                "or remove the folder", TensorcaskWarning, stacklevel=3,
            )  # fmt: skip

    def _variables(self) -> list[Any]:
        return variables_of(self.module)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state of the wrapped module, under its names. What is cached is no part of it."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads the state of the wrapped module, as `nn.Module.load_state_dict` does."""
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A model that contains this one loads its children by path, but `state_dict` leaves the path "module" out.
        names = [name for name in state_dict if name.startswith(prefix)]
        state_dict.update({f"{prefix}module.{name.removeprefix(prefix)}": state_dict.pop(name) for name in names})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
