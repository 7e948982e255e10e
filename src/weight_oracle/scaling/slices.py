"""The time of a run in slices: when to stop, what was done, and how far that was from its floors."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from weight_oracle.scaling.floors import Cost, Peak, report

MARGIN = 0.97  # of a slice is used: what follows the last checkpoint takes time too
_LONGER = 1.2  # than it ever was, some work may take


class Clock:
    """When to stop: before the slice is over, given the longest that each kind of work has taken."""

    def __init__(self, seconds: float | None):
        self.end = math.inf if seconds is None else time.perf_counter() + MARGIN * seconds
        self.longest: dict[str, float] = {}

    def has_time_for(self, *work: str) -> bool:
        if not self.longest:  # so that no slice is in vain
            return True
        return time.perf_counter() + _LONGER * sum(self.longest.get(name, 0.0) for name in work) < self.end

    def took(self, work: str, seconds: float) -> None:
        self.longest[work] = max(self.longest.get(work, 0.0), seconds)

    @contextmanager
    def timing(self, work: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.took(work, time.perf_counter() - start)


@dataclass
class Tally:
    """What was done so far and what it took, over all slices."""

    shards: int = 0  # that the run has met
    targets: int = 0  # in them, in all splits, whether they learned their chart or not
    rebuilt: int = 0  # shards trained again in a later slice, for want of the cache
    slices: int = 0
    seconds: float = 0.0  # that they took
    target_seconds: float = 0.0  # of training them and preparing them for the encoder
    first_seconds: float = 0.0  # those of the first shard of each shape in each slice: compilation included
    oracle_seconds: float = 0.0  # of training it, without
    question_seconds: float = 0.0  # those in which it waited for the next batch of questions
    target_cost: dict[str, float] = field(default_factory=lambda: asdict(Cost()))
    oracle_cost: dict[str, float] = field(default_factory=lambda: asdict(Cost()))

    def add(self, name: str, cost: Cost) -> None:
        setattr(self, name, asdict(Cost(**getattr(self, name)) + cost))


def tally_report(tally: Tally, peak: Peak, tf32: bool) -> dict[str, Any]:
    """What was done, and how far each kind of work is from its two floors."""
    targets = report(Cost(**tally.target_cost), tally.target_seconds, peak, tf32=False)
    oracle = report(Cost(**tally.oracle_cost), tally.oracle_seconds, peak, tf32)
    counts = {name: getattr(tally, name) for name in ("shards", "targets", "rebuilt", "slices", "first_seconds", "question_seconds")}
    return counts | {"peak": asdict(peak), "target_training": targets, "oracle_training": oracle}
