"""A cached `nn.Module`, which is an `nn.Module` itself."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from ._errors import InvalidError
from ._handle import Handle
from ._methods import CacheMethods, keyword_names
from ._run import freeze, is_stateless, run_traced, runner, taken
from ._torch_state import is_exporting, is_symbolic, not_compiled

# These dicts of the wrapped module are its state. Both modules have the same ones.
_SHARED = (
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_OWN = frozenset({"_wrapped", "_handle", "_compiled_call_impl", *vars(nn.Module())})
_OWN_HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name and name not in _SHARED)


class CachedModule(CacheMethods, nn.Module):
    """A frozen module whose output for a sample is computed once.

    It takes the place of the wrapped module: it has the same parameters, buffers and children, the same keys in
    `state_dict`, and its attributes, except those that are methods here. `unwrap()` returns the wrapped module.

    The wrapped module stays in evaluation mode: `train()` of this module, or of one that contains it, has no effect on
    it. With `enforce_stateless=False`, `train()` reaches it, and calls bypass the cache while it is training.

    Forward hooks of the wrapped module and its children run when outputs are computed. Hooks that are registered on
    this module run in each call. Within `torch.compile` the lookup is a graph break. Calls that are traced or
    transformed (`torch.export`, `torch.jit.trace`, `torch.fx`, `vmap`, fake and meta tensors) run the module itself.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: str | os.PathLike[str] | None,
        module_id: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        handle = Handle(module, runner(module, module), folder, module_id, options)
        handle.ids_name, handle.variant_name = keyword_names(module.forward, options)
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_wrapped", module)
        for name in _SHARED:
            if name in vars(module):
                object.__setattr__(self, name, vars(module)[name])
        freeze(module, options)
        object.__setattr__(self, "training", module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output for a batch, found by the keyword `ids`, or by content.

        The keyword `variant` is the number of the samples' variant. All other arguments are those of the module.
        Tensors are batched by their first dimension; `tensorcask.shared(tensor)` is the same for all samples.
        """
        ids, variant = taken(self._handle, kwargs)
        if is_exporting():
            return self._wrapped(*args, **kwargs)
        return self._lookup(args, kwargs, ids, variant)

    @not_compiled
    def _lookup(self, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Any, variant: int) -> Any:
        if is_symbolic(args, kwargs):
            return run_traced(self._wrapped, self._wrapped, args, kwargs)
        return self._handle.call(args, kwargs, ids, variant, self._tensorcask_training())

    def unwrap(self) -> nn.Module:
        """The wrapped module."""
        found: nn.Module = self._wrapped
        return found

    def _tensorcask_handle(self) -> Handle:
        found: Handle = self._handle
        return found

    def _tensorcask_training(self) -> bool:
        return bool(self._wrapped.training) and not is_stateless(self._handle.options)

    # The wrapped module's state

    def __getattr__(self, name: str) -> Any:
        wrapped = self.__dict__.get("_wrapped")
        if wrapped is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or isinstance(inspect.getattr_static(type(self), name, None), property):
            object.__setattr__(self, name, value)
            return
        setattr(self._wrapped, name, value)
        self._handle.describe_again()

    def __delattr__(self, name: str) -> None:
        delattr(self._wrapped, name)
        self._handle.describe_again()

    def __getitem__(self, index: Any) -> Any:
        return self._wrapped[index]

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self._wrapped)})

    def __repr__(self) -> str:
        handle = self._handle
        lines = [f"module_id={handle.module_id!r}, folder={handle.given_folder!r}", f"(module): {self._wrapped!r}"]
        return f"{type(self).__name__}(\n  " + "\n".join(lines).replace("\n", "\n  ") + "\n)"

    def train(self, mode: bool = True) -> CachedModule:
        """Has no effect on a frozen module. With `enforce_stateless=False`, sets the wrapped module's mode."""
        if not is_stateless(self._handle.options):
            self._wrapped.train(mode)
            self.training = mode
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> CachedModule:
        """Calls `fn` with the wrapped module and its children."""
        self._wrapped.apply(fn)
        self._handle.describe_again()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's `state_dict`, without a prefix."""
        return self._wrapped.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's `load_state_dict`. Outputs of the former weights are not found from then on."""
        return self._wrapped.load_state_dict(*args, **kwargs)

    def get_extra_state(self) -> Any:
        """The wrapped module's extra state."""
        return self._wrapped.get_extra_state()

    def set_extra_state(self, state: Any) -> None:
        """Sets the wrapped module's extra state."""
        self._wrapped.set_extra_state(state)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._wrapped._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._wrapped._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> CachedModule:
        self._wrapped._apply(fn, recurse)
        return self

    # Copies

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedModule:
        return self._copied(copy.deepcopy(self._wrapped, memo))

    def __copy__(self) -> CachedModule:
        return self._copied(self._wrapped)

    def _copied(self, wrapped: nn.Module) -> CachedModule:
        copied = type(self)(wrapped, *self._given())
        copied.__setstate__({name: copy.copy(vars(self)[name]) for name in _OWN_HOOKS})
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        hooks = {name: vars(self)[name] for name in _OWN_HOOKS}
        return type(self), (self._wrapped, *self._given()), hooks

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _given(self) -> tuple[str | None, str | None, dict[str, Any]]:
        handle = self._handle
        return handle.given_folder, handle.given_module_id, {**handle.options, "enabled": handle.enabled}

    # What does not work

    def __prepare_scriptable__(self) -> NoReturn:
        raise InvalidError(
            "a cached module cannot be compiled by torch.jit.script, as a lookup is no TorchScript: script the wrapped "
            "module, module.unwrap(), and cache the result"
        )

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise InvalidError(
            "nn.DataParallel copies modules to threads of other devices in each call, which a cached module does not "
            "support: use DistributedDataParallel, or keep the cached module outside of nn.DataParallel"
        )
