"""Places for values in one piece of memory, by their lifetimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def lifetimes(
    made: Sequence[Sequence[str]], read: Sequence[Sequence[str]]
) -> dict[str, tuple[int, int]]:
    """When each value that a step makes is first and last needed.

    Parameters
    ----------
    made, read : of each step, in order, the names of what it makes and reads.
    """
    lives: dict[str, tuple[int, int]] = {}
    for index, (makes, reads) in enumerate(zip(made, read, strict=True)):
        for name in makes:
            lives[name] = (index, index)
        for name in reads:
            if name in lives:
                lives[name] = (lives[name][0], index)
    return lives


def place(
    spans: Mapping[str, int], lives: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, int], int]:
    """Offsets for values, and where the last of them ends.

    The largest value first, each at the lowest place that is free while it lives.
    """
    offsets: dict[str, int] = {}
    for name in sorted(lives, key=lambda n: -spans[n]):
        born, dies = lives[name]
        busy = sorted(
            (offsets[other], offsets[other] + spans[other])
            for other in offsets
            if lives[other][0] <= dies and born <= lives[other][1]
        )
        start = 0
        for low, high in busy:
            if start + spans[name] <= low:
                break
            start = max(start, high)
        offsets[name] = start
    return offsets, max((offsets[name] + spans[name] for name in offsets), default=0)
