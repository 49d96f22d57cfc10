"""Rows of a store as a column of a dataset of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")

import tensorcask as tc  # noqa: E402

features = tc.integrations.datasets.features
ROWS = torch.rand(30, 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with tc.open(tmp_path, "features") as store:
        store.put([f"id {number}" for number in range(30)], ROWS)
        store.flush()
        yield store


@pytest.fixture
def dataset() -> Any:
    return datasets.Dataset.from_dict({"id": [f"id {number}" for number in range(30)], "label": list(range(30))})


def test_rows_are_a_column(store: Any, dataset: Any) -> None:
    joined = dataset.with_transform(features(store, key="id"))
    batch = joined[[4, 2]]
    assert torch.equal(batch["features"], ROWS[[4, 2]]) and list(batch["label"]) == [4, 2]
    sample = joined[7]
    assert torch.equal(sample["features"], ROWS[7]) and sample["id"] == "id 7"
    shuffled = joined.shuffle(seed=1)[:5]
    assert torch.equal(shuffled["features"], ROWS[list(shuffled["label"])])
    assert "features" not in dataset.column_names


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_loader(store: Any, dataset: Any, workers: int) -> None:
    joined = dataset.with_transform(features(store, columns=["label"], column="x"))
    loader = torch.utils.data.DataLoader(joined, batch_size=8, num_workers=workers)
    batches = list(loader)
    assert set(batches[0]) == {"label", "x"}
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), ROWS)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(30))


def test_keys_by_function_and_a_transform_afterwards(store: Any, dataset: Any) -> None:
    def double(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "features": batch["features"] * 2}

    transform = features(store, key=lambda batch: [f"id {label}" for label in batch["label"]], then=double)
    assert torch.equal(dataset.with_transform(transform)[:3]["features"], ROWS[:3] * 2)


def test_errors_say_what_is_wrong(store: Any, dataset: Any) -> None:
    with pytest.raises(tc.InvalidError, match="no column 'name', but 'id', 'label'"):
        dataset.with_transform(features(store, key="name"))[:2]
    with pytest.raises(tc.InvalidError, match="already"):
        dataset.with_transform(features(store, column="label"))[:2]
    more = datasets.Dataset.from_dict({"id": ["id 1", "other"]})
    with pytest.raises(tc.KeyMissingError, match="other"):
        more.with_transform(features(store))[:2]
