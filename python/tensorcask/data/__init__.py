"""Stored rows as input of a training loop.

``StoreDataset`` is a map-style dataset for ``torch.utils.data.DataLoader``. ``batches`` is an iterable that reads ahead
in a thread, for loops without worker processes. Both read each batch with one gather.
"""

from __future__ import annotations

from tensorcask.data._batch import GatheredBatch, collate
from tensorcask.data._dataset import StoreDataset
from tensorcask.data._stream import Batches, batches

__all__ = ["Batches", "GatheredBatch", "StoreDataset", "batches", "collate"]
