"""Parts of a foreign dataset, such as train and val, where folders say which file is in which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.chassis.errors import InvalidArgument, Violation

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
"""In lower case; folders may have other letters."""
NAMED_MAX = 20
"""Parts that an error names."""


def in_split(paths: Sequence[str], split: str) -> list[str]:
    """The paths with a folder of the split's name; all where none is named and there is one at most.

    Raises InvalidArgument where a split is not there, or none is named and there are several.
    """
    folders: dict[str, None] = {}
    for path in paths:
        folders.update(dict.fromkeys([part for part in path.split("/")[:-1] if part.lower() in SPLITS][:1]))
    if split:
        wanted = split.strip("/").lower()
        chosen = [path for path in paths if wanted in path.lower().split("/")[:-1]]
        if not chosen:
            raise wrong_split(split, folders)
        return chosen
    if len(folders) > 1:
        raise wrong_split(split, folders)
    return list(paths)


def wrong_split(split: str, there: Iterable[str]) -> InvalidArgument:
    """The error for a split that is not there, or that is not named where there are several."""
    found = f"is {split!r}" if split else "is empty, but the source has several"
    names = ", ".join(sorted(there)[:NAMED_MAX]) or "none"
    return InvalidArgument([Violation(field="split", description=f"{found}; there are: {names}")])
