"""Measures epochs with a cache, and reads to the device."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import torch

import tensorcask as tc

BATCH = 256
ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[dict[str, Any]], None]


def run(device: Any, write: Write, left_s: Callable[[], float], small: bool) -> None:
    """Runs all measurements, as long as there is time."""
    torch.backends.cuda.matmul.allow_tf32 = True
    for measure in (minilm, vit, transfers):
        if left_s() < 20:
            write({"kind": "measure", "name": measure.__name__, "result": "failed", "why": "no time was left"})
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="tensorcask-gpu-") as folder:
                measure(device, write, Path(folder), small)
        except Exception:  # noqa: BLE001 - the other measurements have to run
            why = traceback.format_exc(limit=-4)
            write({"kind": "measure", "name": measure.__name__, "result": "failed", "why": why})


def timed_s(device: Any, run: Callable[[], Any]) -> float:
    """Seconds of ``run``, with all kernels it starts."""
    synchronize(device)
    begin_s = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin_s


def synchronize(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_s(device: Any, run: Callable[[], Any], rounds: int = 7) -> float:
    """The median of several runs after one to warm up."""
    run()
    return sorted(timed_s(device, run) for _ in range(rounds))[rounds // 2]


def epochs(device: Any, write: Write, folder: Path, name: str, backbone: Any, batches: Any, **options: Any) -> None:
    """Times an epoch without a cache, the first and later ones with it, and one of a new handle.

    ``batches`` yields ``(inputs, ids)``; each epoch iterates over it anew.
    """

    def plain() -> None:
        with torch.no_grad():
            for inputs, _ids in batches():
                backbone(*inputs)

    def cached_epoch(cached: Any) -> None:
        for inputs, ids in batches():
            cached(*inputs, ids=ids)

    for inputs, _ids in batches():
        with torch.no_grad():
            backbone(*inputs)
        break
    sizes = [len(ids) for _, ids in batches()]
    samples = sum(sizes)
    loading_s = timed_s(device, lambda: [None for _ in batches()])
    plain_s = timed_s(device, plain)
    with tc.cache(backbone, folder, module_id=name, **options) as cached:
        first_s = timed_s(device, lambda: cached_epoch(cached))
        second_s = min(timed_s(device, lambda: cached_epoch(cached)) for _ in range(3))
        stats = cached.stats()
    with tc.cache(backbone, folder, module_id=name, **options) as cached:
        reopened_s = timed_s(device, lambda: cached_epoch(cached))
        misses = cached.stats()["misses"]
    row_bytes = stats["put_bytes"] // samples
    write({
        "kind": "measure", "name": name, "samples": samples, "row_bytes": row_bytes, "batch": sizes[0],
        "inputs_s": loading_s, "no_cache_s": plain_s, "epoch_1_s": first_s, "epoch_2_s": second_s,
        "new_handle_s": reopened_s, "ratio": plain_s / second_s, "misses": stats["misses"],
        "misses_of_new_handle": misses, "read_gb_per_s": row_bytes * samples / second_s / 1e9,
    })  # fmt: skip


def minilm(device: Any, write: Write, folder: Path, small: bool) -> None:
    """All-MiniLM-L6-v2 over review sentences: token ids of fixed length, and ``encode``."""
    path = os.environ.get("TENSORCASK_GPU_MODEL", "")
    if not path:
        write({"kind": "measure", "name": "minilm", "result": "skipped", "why": "TENSORCASK_GPU_MODEL is not set"})
        return
    from sentence_transformers import SentenceTransformer

    lines = (ROOT / "examples" / "data" / "sentences.tsv").read_text().splitlines()
    sentences = [line.partition("\t")[2] for line in lines][: 2 * BATCH if small else None]
    model = SentenceTransformer(path, device=str(device)).to(torch.float32)
    model.requires_grad_(False)
    tokens = model.tokenizer(
        sentences, padding="max_length", truncation=True, max_length=64, return_tensors="pt"
    ).to(device)
    encoder = encoders.Pooled(model[0].auto_model).eval()

    def batches() -> Any:
        for start in range(0, len(sentences), BATCH):
            at = slice(start, start + BATCH)
            ids = torch.arange(start, min(start + BATCH, len(sentences)))
            yield (tokens["input_ids"][at], tokens["attention_mask"][at]), ids

    epochs(device, write, folder / "tokens", "minilm", encoder, batches)
    cached = tc.integrations.sentence_transformers.cache(model, folder / "sentences")

    def encode(of: Any) -> Any:
        return of.encode(sentences, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)

    encode(model)
    plain_s = timed_s(device, lambda: encode(model))
    first_s = timed_s(device, lambda: encode(cached))
    second_s = min(timed_s(device, lambda: encode(cached)) for _ in range(3))
    write({
        "kind": "measure", "name": "minilm encode", "samples": len(sentences), "row_bytes": 384 * 4, "batch": BATCH,
        "no_cache_s": plain_s, "epoch_1_s": first_s, "epoch_2_s": second_s, "ratio": plain_s / second_s,
        "misses": cached.stats()["misses"],
    })  # fmt: skip
    cached.close()


def vit(device: Any, write: Write, folder: Path, small: bool) -> None:
    """A transformer with the shape of ViT-B/16 and random weights: one vector, and all tokens, per image."""
    model = encoders.VisionTransformer(layers=2 if small else 12).to(device).eval().requires_grad_(False)
    count = 2 * BATCH if device.type == "cuda" or not small else 8
    count = count * 4 if device.type == "cuda" else count
    size = min(BATCH, count // 2)
    generator = torch.Generator(device).manual_seed(1)
    # Images stay on the device: the measurement is about the backbone, not about loading images.
    images = torch.randn(size, 3, 224, 224, generator=generator, device=device)

    def batches() -> Any:
        for start in range(0, count, size):
            yield (images,), torch.arange(start, start + size)

    is_gpu = device.type == "cuda"
    backbone = encoders.InHalf(model, device.type) if is_gpu else model
    quick: dict[str, Any] = {"pinned": True, "map_location": str(device)} if is_gpu else {}
    epochs(device, write, folder, "vit-b16-class-token", backbone, batches, **quick)
    held = {"memory_device": str(device), "memory_bytes": 1 << 30}
    epochs(device, write, folder, "vit-b16-class-token-held-on-the-device", backbone, batches, **held)
    by_content(device, write, folder, backbone, images)
    model.outputs = "tokens"
    epochs(device, write, folder, "vit-b16-all-tokens", backbone, batches, **quick)
    if is_gpu:
        epochs(device, write, folder, "vit-b16-all-tokens-pageable", backbone, batches)


def by_content(device: Any, write: Write, folder: Path, backbone: Any, images: torch.Tensor) -> None:
    """Hits without ids: all bytes of the images are copied to the host and hashed."""
    with tc.cache(backbone, folder, module_id="vit-b16-by-content") as cached, torch.no_grad():
        cached(images)
        compute_s = median_s(device, lambda: backbone(images), 3)
        hit_s = median_s(device, lambda: cached(images), 3)
    input_bytes = images.numel() * images.element_size()
    write({
        "kind": "measure", "name": "vit-b16-by-content", "batch": len(images), "input_bytes": input_bytes,
        "compute_s": compute_s, "hit_s": hit_s, "ratio": compute_s / hit_s,
        "hashed_gb_per_s": input_bytes / hit_s / 1e9,
    })  # fmt: skip


def transfers(device: Any, write: Write, folder: Path, small: bool) -> None:
    """Reads of batches to the device: page-locked against pageable memory, by row size."""
    total_bytes = (16 if small else 512) << 20
    for row_bytes in (3072, 302_592):
        count = max(BATCH, total_bytes // row_bytes // BATCH * BATCH)
        width = row_bytes // 2
        name = f"rows-{row_bytes}"
        with tc.open(folder, name) as store:
            for start in range(0, count, BATCH):
                store.put(range(start, start + BATCH), torch.randn(BATCH, width).half())
            store.flush()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
        _transfers(device, write, folder, name, row_bytes, list(order.split(BATCH)))


def _transfers(device: Any, write: Write, folder: Path, name: str, row_bytes: int, keys: list[torch.Tensor]) -> None:
    count = sum(map(len, keys))

    def report(way: str, seconds: float) -> None:
        write({
            "kind": "transfer", "way": way, "row_bytes": row_bytes, "rows": count,
            "gb_per_s": count * row_bytes / seconds / 1e9, "us_per_batch": seconds / len(keys) * 1e6,
        })  # fmt: skip

    def each(read: Callable[[torch.Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            for batch in keys:
                read(batch)

        return run

    with tc.open(folder, name, mode="r") as store:
        report("take to the CPU", median_s(device, each(store.take), 3))
        rows = store.take(keys[0])
        out = torch.empty_like(rows)
        report("take into one buffer", median_s(device, each(lambda batch: store.take(batch, out=out)), 3))
        report("take, then pageable copy", median_s(device, each(lambda batch: store.take(batch).to(device)), 3))
        if device.type == "cuda":
            report(
                "take, then pin_memory and copy",
                median_s(device, each(lambda batch: store.take(batch).pin_memory().to(device, non_blocking=True)), 3),
            )
            pinned = torch.empty_like(rows, pin_memory=True)
            report("copy alone, pageable", median_s(device, each(lambda batch: rows.to(device)), 3))
            report("copy alone, pinned", median_s(device, each(lambda batch: pinned.to(device, non_blocking=True)), 3))
        batches = tc.data.batches(store, torch.cat(keys), BATCH, device=device, prefetch=3)
        report("data.batches to the device", median_s(device, lambda: [None for _ in batches], 3))
    with tc.open(folder, name, mode="r", device=str(device)) as store:
        report("take of a store on the device", median_s(device, each(store.take), 3))
