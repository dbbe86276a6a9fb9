"""What clients felt: every request and every step with its retries, and the figures that a report needs of them.

Judges no content (verdict.py does) and knows neither HTTP nor faults. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

BUCKET = 0.25
"""Seconds of a point in a plot."""
KEPT = 20
"""Texts of failures that are kept of each operation: what they have in common shows in fewer."""


class Kind(StrEnum):
    """What clients do: the columns of the matrix."""

    PUSH = "push"
    CHUNKED = "chunked push"
    PULL = "pull"
    TAG = "tag move"
    DELETE = "delete"


@dataclass(frozen=True)
class Sample:
    """One request."""

    began: float
    seconds: float
    good: bool

    @property
    def ended(self) -> float:
        return self.began + self.seconds


@dataclass(frozen=True)
class Span:
    """When a fault was there. One that is over as soon as it has struck begins and ends at once."""

    began: float
    ended: float


@dataclass
class Meter:
    """What happened to one kind of operation under one fault. Its clients share it."""

    samples: list[Sample] = field(default_factory=list)
    steps: int = 0
    """Things a person would have asked for: a push of an image, a pull."""
    first_failures: int = 0
    """Steps whose first try failed: what a client without retries would have shown."""
    failures: list[str] = field(default_factory=list)
    """Steps that failed with all retries of a stock client."""
    reasons: list[str] = field(default_factory=list)
    """Why requests failed: the first few."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def request(self, began: float, ended: float, failure: str | None) -> None:
        with self.lock:
            self.samples.append(Sample(began, ended - began, failure is None))
            if failure is not None and len(self.reasons) < KEPT:
                self.reasons.append(failure)

    def step(self, tries: int, failure: str | None) -> None:
        """A step is over, after so many tries."""
        with self.lock:
            self.steps += 1
            self.first_failures += tries > 1 or failure is not None
            if failure is not None:
                self.failures.append(failure)

    @property
    def failed(self) -> int:
        """How many requests."""
        return sum(not sample.good for sample in self.samples)

    @property
    def worst(self) -> float:
        """How long the slowest request took, good or not."""
        return max((sample.seconds for sample in self.samples), default=0.0)

    def recovery(self, spans: Sequence[Span], *, refused: bool) -> float | None:
        """The longest time that it took to be well again; None: it never was.

        From the blow to the first good answer behind the last request that failed, 0 when none did; where the fault
        makes the operation impossible (`refused`), from its end to the first good answer to what was asked then.
        """
        limits = [*(span.began for span in spans[1:]), math.inf]
        found = [
            self._first_good(span.ended, limit) if refused else self._well_again(span.began, limit)
            for span, limit in zip(spans, limits, strict=True)
        ]
        times = [seconds for seconds in found if seconds is not None]
        return max(times, default=0.0) if len(times) == len(found) else None

    def _well_again(self, start: float, limit: float) -> float | None:
        # What ends behind the next blow counts there, although it may have begun before it.
        failed = [sample.ended for sample in self.samples if not sample.good and start <= sample.ended < limit]
        if not failed:
            return 0.0
        good = [sample.ended for sample in self.samples if sample.good and sample.ended > max(failed)]
        return min(good) - start if good else None

    def _first_good(self, start: float, limit: float) -> float | None:
        ends = [sample.ended for sample in self.samples if sample.good and start <= sample.began < limit]
        return min(ends) - start if ends else None


@dataclass(frozen=True)
class Bucket:
    """A short time of a plot."""

    at: float  # seconds since the load began
    requests: int
    failed: int
    median: float
    worst: float


def timeline(samples: Sequence[Sample], start: float, width: float = BUCKET) -> list[Bucket]:
    """Requests by the time at which they ended; times in which none did are left out."""
    slots: dict[int, list[Sample]] = {}
    for sample in samples:
        slots.setdefault(int((sample.ended - start) // width), []).append(sample)
    found = []
    for slot, inside in sorted(slots.items()):
        seconds = sorted(sample.seconds for sample in inside)
        failed = sum(not sample.good for sample in inside)
        found.append(Bucket(slot * width, len(inside), failed, seconds[len(seconds) // 2], seconds[-1]))
    return found
