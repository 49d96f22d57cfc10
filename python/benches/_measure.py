"""Timing: contenders take turns, so that noise of the machine hits all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A timed sample of a fast contender is the mean of several calls, as long as they take about this long in all.
_SAMPLE_S = 0.005
_CALLS_MAX = 64

Call = Callable[[int], Any]


@dataclass
class Times:
    """Seconds per call: one value a round."""

    rounds_s: list[float]

    @property
    def median_s(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """The first and the third quartile."""
        return _quartiles(self.rounds_s)


@dataclass
class Ratio:
    """How many times as long one contender takes as another: the median over the rounds, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} × [{self.low:.3g}–{self.high:.3g}]"


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def ratio(of: Times, to: Times) -> Ratio:
    """The ratio of two contenders that took turns. Each round is compared with itself."""
    values = [a / b for a, b in zip(of.rounds_s, to.rounds_s, strict=True)]
    return Ratio(statistics.median(values), *_quartiles(values))


def take_turns(contenders: Mapping[str, Call], rounds: int) -> dict[str, Times]:
    """Times each contender once a round. The first one changes from round to round.

    A contender is called with a number that differs in each call: it picks the batch. Contenders get the same numbers
    where they are called equally often.
    """
    calls = {name: _calls(call) for name, call in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                found[name].append(_time_s(contenders[name], number * _CALLS_MAX, calls[name]))
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return {name: Times(times) for name, times in found.items()}


def _calls(call: Call) -> int:
    call(0)  # warm up
    once_s = max(_time_s(call, 1, 1), 1e-9)
    return max(1, min(_CALLS_MAX, round(_SAMPLE_S / once_s)))


def _time_s(call: Call, start: int, calls: int) -> float:
    begin_s = time.perf_counter()
    for number in range(start, start + calls):
        call(number)
    return (time.perf_counter() - begin_s) / calls
