"""Copies batches to a device beside the kernels that run there."""

from __future__ import annotations

from typing import Any

from tensorcask.data._torch import torch
from tensorcask.data._tree import map_columns

# Their constructors have no annotations.
_untyped: Any = torch.cuda


class Transfer:
    """Copies batches to ``device``.

    The reading thread sends, and the training thread receives. A copy to a GPU runs on a stream of its own, from
    page-locked memory. ``receive`` makes the current stream wait for it.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        is_cuda = device is not None and device.type == "cuda"
        self._stream: torch.cuda.Stream | None = _untyped.Stream(device) if is_cuda else None

    def send(self, batch: Any) -> Any:
        """Starts the copy of a batch."""
        if self._device is None:
            return batch, None
        if self._stream is None:
            return _on_each(batch, lambda tensor: tensor.to(self._device)), None
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # The allocator reuses page-locked memory only once the copy from it has ended.
            sent = _on_each(batch, lambda tensor: _pinned(tensor).to(self._device, non_blocking=True))
            done = _untyped.Event()
            done.record(self._stream)
        return sent, done

    def receive(self, sent: Any) -> Any:
        """The batch, for use on the current stream."""
        batch, done = sent
        if done is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(done)
            _on_each(batch, lambda tensor: _record(tensor, current))
        return batch


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() or tensor.device.type != "cpu" else tensor.pin_memory()


def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    # The memory belongs to the stream of the copy; it must not be reused while the current stream reads it.
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def _on_each(batch: Any, change: Any) -> Any:
    def column(value: Any) -> Any:
        if isinstance(value, list):
            return [column(item) for item in value]
        return change(value) if isinstance(value, torch.Tensor) else value

    return map_columns(batch, column)
