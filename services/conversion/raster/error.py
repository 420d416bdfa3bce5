"""What is wrong with a map's file, and what one may be."""

from __future__ import annotations

from dataclasses import dataclass


class RasterError(Exception):
    """The file cannot be taken for a map. `rule` is a finding's; the message goes on after "the file"."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(problem)
        self.rule = rule


@dataclass(frozen=True, kw_only=True)
class RasterLimits:
    """What a file may claim before anything is decoded."""

    pixels_max: int
    """Of one page."""
    pages_max: int
