"""The results as Markdown."""

from __future__ import annotations

from typing import Any


def markdown(lines: list[dict[str, Any]]) -> str:
    """Tables of all results so far."""
    machine = next((line for line in lines if line["kind"] == "machine"), {})
    where = machine.get("gpu", machine.get("device", ""))
    text = [
        f"On {where}: tensorcask {machine.get('tensorcask')}, PyTorch {machine.get('torch')}, Python "
        f"{machine.get('python')}, {machine.get('cpus')} CPU cores.",
        "",
    ]
    return "\n".join(text + _epochs(lines) + _transfers(lines) + _checks(lines)) + "\n"


def _epochs(lines: list[dict[str, Any]]) -> list[str]:
    found = [line for line in lines if line["kind"] == "measure" and "epoch_2_s" in line]
    rows = [
        [
            line["name"], f"{line['samples']}", _bytes(line["row_bytes"]), _ms(line["no_cache_s"]),
            _ms(line["epoch_1_s"]), _ms(line["epoch_2_s"]), _ms(line.get("new_handle_s")), f"{line['ratio']:.1f}",
        ]
        for line in found
    ]  # fmt: skip
    head = ["backbone", "samples", "row", "no cache", "epoch 1", "epoch 2", "new handle", "no cache / epoch 2"]
    text = _table("Epochs", head, rows)
    for line in lines:
        if line["kind"] == "measure" and "hit_s" in line:
            text += [
                f"By content, a batch of {line['batch']} images of {_bytes(line['input_bytes'] // line['batch'])} is "
                f"found in {_ms(line['hit_s'])} ({line['hashed_gb_per_s']:.1f} GB/s copied to the host and hashed), "
                f"and computed in {_ms(line['compute_s'])}.",
                "",
            ]
    return text


def _transfers(lines: list[dict[str, Any]]) -> list[str]:
    rows = [
        [line["way"], _bytes(line["row_bytes"]), f"{line['gb_per_s']:.2f}", f"{line['us_per_batch']:.0f}"]
        for line in lines
        if line["kind"] == "transfer"
    ]
    return _table("Reads of batches of 256 rows", ["way", "row", "GB/s", "µs per batch"], rows)


def _checks(lines: list[dict[str, Any]]) -> list[str]:
    checks = [line for line in lines if line["kind"] == "check"]
    counts = {result: sum(line["result"] == result for line in checks) for result in ("passed", "skipped", "failed")}
    text = ["## Checks", "", ", ".join(f"{count} {result}" for result, count in counts.items()) + ".", ""]
    for line in lines:
        if line.get("result") in ("failed", "skipped"):
            why = str(line.get("why", "")).strip().splitlines()
            text.append(f"- {line['result']}: `{line['name']}`: {why[-1] if why else ''}")
    return [*text, ""]


def _table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return [f"## {title}", "", *lines, ""]


def _bytes(count: int) -> str:
    return f"{count} B" if count < 1 << 16 else f"{count / 1024:.0f} KiB"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f} ms"
