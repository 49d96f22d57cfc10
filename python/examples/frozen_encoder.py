"""Trains a classifier on a frozen sentence encoder: all-MiniLM-L6-v2 over 2,400 review sentences.

    scripts/with-python scripts/with-models python python/examples/frozen_encoder.py

Prints the time of an epoch when it is computed, when it is cached, in a new process, and in a k-fold cross-validation
of a classifier of the sentences' sentiment. It also shows the effect of another checkpoint, and that the classifier is
as accurate with the cache as without. Needs sentence-transformers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

import tensorcask as tc

SENTENCES = Path(__file__).resolve().parents[2] / "examples" / "data" / "sentences.tsv"
FOLDS = 5


def corpus(count: int | None) -> tuple[list[str], torch.Tensor]:
    """Sentences, and whether people found each positive."""
    lines = [line.split("\t", 1) for line in SENTENCES.read_text().splitlines()][:count]
    return [sentence for _, sentence in lines], torch.tensor([float(score) > 0 for score, _ in lines])


def encoder() -> SentenceTransformer:
    """The encoder, from the folder that scripts/with-models names, or from the hub."""
    models = os.environ.get("TENSORCASK_MODELS")
    path = str(Path(models) / "all-MiniLM-L6-v2") if models else "sentence-transformers/all-MiniLM-L6-v2"
    return SentenceTransformer(path, device="cpu")


def cached(model: SentenceTransformer, folder: Path) -> Any:
    """The encoder with a cache. This line is all that a program changes."""
    return tc.integrations.sentence_transformers.cache(model, folder)


def timed(run: Any) -> tuple[Any, float]:
    begin_s = time.perf_counter()
    return run(), time.perf_counter() - begin_s


def fit(x: torch.Tensor, y: torch.Tensor) -> torch.nn.Linear:
    """A logistic regression."""
    torch.manual_seed(0)
    head = torch.nn.Linear(x.shape[1], 1)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.binary_cross_entropy_with_logits(head(x).squeeze(1), y.float())
        found = found + 1e-4 * head.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return head


def cross_validate(model: Any, sentences: list[str], labels: torch.Tensor) -> float:
    """The accuracy of a classifier over all folds. Each fold encodes its sentences anew."""
    right = 0
    for fold in range(FOLDS):
        test = torch.arange(len(sentences)) % FOLDS == fold
        parts = [[sentences[at] for at in part.nonzero().flatten()] for part in (~test, test)]
        embed = [model.encode(part, convert_to_tensor=True, show_progress_bar=False) for part in parts]
        head = fit(embed[0], labels[~test])
        right += int(((head(embed[1]).squeeze(1) > 0) == labels[test]).sum())
    return right / len(sentences)


class Embeddings:
    """Embeddings that were computed without a cache, in the place of an encoder."""

    def __init__(self, sentences: list[str], embeddings: torch.Tensor) -> None:
        self.rows = dict(zip(sentences, embeddings, strict=True))

    def encode(self, sentences: list[str], **_: Any) -> torch.Tensor:
        return torch.stack([self.rows[sentence] for sentence in sentences])


def in_new_process(folder: Path, count: int) -> str:
    """What this program prints when it finds the sentences on disk."""
    command = [sys.executable, __file__, "--child", str(folder), "--sentences", str(count)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def child(folder: Path, sentences: list[str]) -> None:
    model = cached(encoder(), folder)
    _, seconds = timed(lambda: model.encode(sentences, show_progress_bar=False))
    print(f"new process: {seconds * 1e3:.1f} ms, {model.stats()['misses']} computed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sentences", type=int, help="the number of sentences (default: all 2,400)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sentences, labels = corpus(arguments.sentences)
    if arguments.child is not None:
        child(arguments.child, sentences)
        return 0
    plain = encoder()
    with tempfile.TemporaryDirectory() as folder:
        return run(plain, Path(folder), sentences, labels)


def run(plain: SentenceTransformer, folder: Path, sentences: list[str], labels: torch.Tensor) -> int:
    """All measurements. Returns 0 if the cache changed nothing."""

    def encode(model: Any) -> torch.Tensor:
        embeddings: torch.Tensor = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
        return embeddings

    direct, plain_s = timed(lambda: encode(plain))
    print(f"no cache: {plain_s:.2f} s for {len(sentences)} sentences")
    model = cached(plain, folder)
    first, first_s = timed(lambda: encode(model))
    print(f"epoch 1: {first_s:.2f} s, {model.end_epoch()['misses']} computed")
    second, second_s = timed(lambda: encode(model))
    computed = model.end_epoch()["misses"]
    print(f"epoch 2: {second_s * 1e3:.1f} ms, {computed} computed: {plain_s / second_s:.0f} times as fast")
    model.flush()
    print(in_new_process(folder, len(sentences)))

    accuracy, seconds = timed(lambda: cross_validate(model, sentences, labels))
    computed = model.end_epoch()["misses"]
    print(f"{FOLDS}-fold cross-validation: {seconds:.2f} s with all fits, {computed} computed")
    expected = cross_validate(Embeddings(sentences, direct), sentences, labels)
    print(f"accuracy: {100 * accuracy:.2f} % with the cache, {100 * expected:.2f} % without")
    same = torch.equal(first, second) and torch.allclose(first, direct, atol=1e-5) and accuracy == expected

    # Another checkpoint: one weight differs. Its embeddings are computed, and those of the first one are kept.
    with torch.no_grad():
        plain.state_dict(keep_vars=True)["0.model.embeddings.LayerNorm.bias"][0].add_(0.01)
    model.encode(sentences[:64], show_progress_bar=False)
    print(f"another checkpoint: {model.end_epoch()['misses']} of 64 computed; {model.why_miss(sentences[100])}")
    model.close()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
