"""Was there an order, within what the clocks allow, in which one at a time would have given these results?

The algorithm of Wing and Gong with the memory of Lowe: search depth first, and never twice from the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

State: TypeAlias = Hashable
Step: TypeAlias = Callable[[Any, "Event"], Iterable[tuple[Any, State]]]
"""From a state, and what is to be done, to the results that there may be, each with the next state."""


@dataclass(frozen=True)
class Event:
    """An operation that took effect at one moment from `start` to `end`."""

    start: float
    end: float
    name: str
    arg: Any = None
    result: Any = None


def stuck_at(history: Sequence[Event], step: Step, state: State) -> list[Event]:
    """Return the operations none of which can come next in the longest order there is; none at all if one holds all."""
    events = sorted(history, key=lambda event: event.start)
    paths = [(0, 0, state)]  # all before `low` are done, and besides those whose bits are set in `done`
    seen = set(paths)
    furthest, stuck = -1, list[Event]()
    while paths:
        low, done, state = paths.pop()
        if low == len(events):
            return []
        candidates = list(_candidates(events, low, done))
        if low + done.bit_count() > furthest:
            furthest, stuck = low + done.bit_count(), [events[n] for n in candidates]
        for n in reversed(candidates):
            for result, after in step(state, events[n]):
                path = (*_normal(low, done | 1 << n - low), after)
                if result == events[n].result and path not in seen:
                    seen.add(path)
                    paths.append(path)
    return stuck


def _candidates(events: Sequence[Event], low: int, done: int) -> Iterator[int]:
    """Yield those that may be next: not done, and begun before any other that is not done had ended."""
    first_end = float("inf")
    for n in range(low, len(events)):
        if events[n].start > first_end:
            return
        if not done >> n - low & 1:
            yield n
            first_end = min(first_end, events[n].end)


def _normal(low: int, done: int) -> tuple[int, int]:
    while done & 1:
        low, done = low + 1, done >> 1
    return low, done
