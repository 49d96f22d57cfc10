"""Batches of a store that are read ahead in a thread."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tensorcask._errors import InvalidError
from tensorcask.data._device import Transfer
from tensorcask.data._gather import Gather, KeyList
from tensorcask.data._targets import Targets
from tensorcask.data._torch import torch

if TYPE_CHECKING:
    from tensorcask import Store

_END = object()
# How often a reading thread looks whether its consumer has stopped.
_POLL_S = 0.05
_THREAD = "tensorcask-batches"
# What stops the threads that read.
_reading: weakref.WeakSet[threading.Event] = weakref.WeakSet()


class Batches(torch.utils.data.IterableDataset[Any]):
    """Batches of rows, read ahead in a thread. ``tensorcask.data.batches`` makes it, and describes the arguments.

    Each iteration is an epoch. With a ``shuffle`` seed, epoch ``n`` has the order of the seed and ``n``.
    """

    def __init__(
        self,
        store: Store,
        keys: Any = None,
        batch_size: int = 256,
        *,
        targets: Any = None,
        shuffle: bool | int = False,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        prefetch: int = 2,
        return_keys: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1 or prefetch < 0:
            raise InvalidError(f"batch_size is {batch_size} and prefetch {prefetch}: pass at least 1 and 0")
        self._device = None if device is None else torch.device(device)
        self._gather = Gather(store, is_pinned=self._device is not None and self._device.type == "cuda")
        self._keys = KeyList(store.keys() if keys is None else keys)
        self._targets = None if targets is None else Targets(targets, self._keys)
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._prefetch = prefetch
        self._return_keys = return_keys
        self._rank, self._world_size = _rank(rank, world_size)
        self._seed = self._seed_of(shuffle)
        self._epoch = 0

    def _seed_of(self, shuffle: bool | int) -> int:
        if shuffle is not True:
            return int(shuffle)
        if self._world_size > 1:
            # All ranks need one order.
            return torch.initial_seed()
        return int(torch.randint(2**62, ()))

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next epoch, on which the order depends, such as when a run is resumed."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch of this rank."""
        samples = self._samples()
        return samples // self._batch_size if self._drop_last else -(-samples // self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        self._epoch += 1
        chunks = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        if self._drop_last and chunks and len(chunks[-1]) < self._batch_size:
            chunks.pop()
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            # Each worker of a ``DataLoader(batches, batch_size=None)`` reads its share of the batches.
            return map(self._read, chunks[worker.id :: worker.num_workers])
        return self._read_ahead(chunks)

    def _samples(self) -> int:
        whole, rest = divmod(len(self._keys), self._world_size)
        return whole if self._drop_last or not rest else whole + 1

    def _order(self) -> torch.Tensor:
        """Positions of this rank's keys in this epoch."""
        count = len(self._keys)
        if self._shuffle is False:
            order = torch.arange(count)
        else:
            generator = torch.Generator()
            generator.manual_seed((self._seed + self._epoch) % 2**63)
            order = torch.randperm(count, generator=generator)
        samples = self._samples()
        if samples * self._world_size > count > 0:
            # As ``DistributedSampler`` does: the first samples fill up, so that all ranks have as many.
            order = torch.cat([order, order[: samples * self._world_size - count]])
        return order[self._rank :: self._world_size][:samples]

    def _read(self, indices: torch.Tensor) -> Any:
        keys = self._keys.at(indices)
        columns = [self._gather.take(keys)]
        if self._targets is not None:
            columns.append(self._targets.at(indices, keys))  # type: ignore[arg-type]
        if self._return_keys:
            columns.append(keys)
        return tuple(columns) if len(columns) > 1 else columns[0]

    def _read_ahead(self, chunks: list[torch.Tensor]) -> Iterator[Any]:
        transfer = Transfer(self._device)
        if self._prefetch == 0:
            for chunk in chunks:
                yield transfer.receive(transfer.send(self._read(chunk)))
            return
        ready: queue.Queue[Any] = queue.Queue(self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(
            target=_produce, args=(self, chunks, transfer, ready, stop), name=_THREAD, daemon=True
        )
        _reading.add(stop)
        thread.start()
        try:
            while (item := ready.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield transfer.receive(item)
        finally:
            stop.set()
            thread.join()


def _stop_reading() -> None:
    """Ends the threads of iterations that were left in the middle. A thread must not run while Python ends."""
    for stop in list(_reading):
        stop.set()
    for thread in threading.enumerate():
        if thread.name == _THREAD:
            thread.join()


atexit.register(_stop_reading)


def _produce(
    batches: Batches, chunks: list[torch.Tensor], transfer: Transfer, ready: queue.Queue[Any], stop: threading.Event
) -> None:
    try:
        for chunk in chunks:
            if not _offer(ready, transfer.send(batches._read(chunk)), stop):
                return
        _offer(ready, _END, stop)
    except BaseException as error:  # The consumer raises it.
        _offer(ready, error, stop)


def _offer(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Puts ``item``; false if the consumer has stopped."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None and world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise InvalidError(f"rank is {rank} and world_size {world_size}: pass both, with 0 <= rank < world_size")
    return rank, world_size


def batches(
    store: Store,
    keys: Any = None,
    batch_size: int = 256,
    *,
    targets: Any = None,
    shuffle: bool | int = False,
    drop_last: bool = False,
    device: torch.device | str | None = None,
    prefetch: int = 2,
    return_keys: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> Batches:
    """Iterates over batches of rows, which a thread reads ahead. Each batch is read with one gather.

    Reading runs without Python's interpreter lock, so it overlaps with the training step. No worker process is needed.
    A batch is the rows ``[n, …]``, or a tuple ``(rows, targets)``, ``(rows, keys)`` or ``(rows, targets, keys)``.

    Args:
        store: The store, as ``tensorcask.open`` returns it.
        keys: The keys in order; by default those that the store has now.
        batch_size: Rows per batch.
        targets: One target per key, as in ``StoreDataset``.
        shuffle: A seed, or ``True`` for a seed that PyTorch's generator draws (in a distributed job: the generator's own
            seed, which the ranks share). Each iteration over the result has another order. If a loop makes the result
            anew for each epoch, pass ``True`` or the number of the epoch.
        drop_last: Whether an incomplete last batch is left out.
        device: The device of the batches. Copies to a GPU come from page-locked memory on a stream of their own, and
            overlap with kernels.
        prefetch: Batches that are read ahead; 0 reads without a thread.
        return_keys: Whether batches contain the keys: integers as an ``int64`` tensor, others as a list.
        rank: The rank of this process in a distributed job; by default that of ``torch.distributed``. Each rank gets
            as many samples: the first ones of the epoch fill up, or the last are dropped with ``drop_last``.
        world_size: The number of ranks.

    Raises:
        InvalidError: An argument is out of range.
        KeyMissingError: While iterating: a key is not in the store.
    """
    return Batches(
        store,
        keys,
        batch_size,
        targets=targets,
        shuffle=shuffle,
        drop_last=drop_last,
        device=device,
        prefetch=prefetch,
        return_keys=return_keys,
        rank=rank,
        world_size=world_size,
    )
