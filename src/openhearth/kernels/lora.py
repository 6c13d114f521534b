"""Which rows of a pack go through which low-rank adapter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterRows:
    """Ranges of rows, ascending and apart, and the adapter slot of each; rows between them have none.

    Example: ``AdapterRows(((0, 3, 0), (7, 8, 2)))`` sends rows 0 to 2 through slot 0, row 7 through slot 2.
    """

    ranges: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        end = 0
        for start, stop, slot in self.ranges:
            assert end <= start < stop and slot >= 0, f"ranges {self.ranges} are not ascending"
            end = stop
