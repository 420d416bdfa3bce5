"""A list of names in metadata.json, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from runner.tasks.task import WrongAnnotation


def read_names(metadata: Mapping[str, Any], key: str, noun: str) -> list[str]:
    """The names under a key, at least one and none twice. Raises WrongAnnotation."""
    names = metadata.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise WrongAnnotation(f"`{key}` must be a list of names, {names!r:.100} was found")
    if len(set(names)) < len(names):
        raise WrongAnnotation(f"`{key}` names {noun} twice")
    return names


def index_reader(names: Sequence[str], noun: str, plural: str) -> Callable[[Any], int]:
    """What turns a name into its place in the list; it raises WrongAnnotation."""
    index_by_name = {name: index for index, name in enumerate(names)}

    def read(annotation: Any) -> int:
        if not isinstance(annotation, str):
            raise WrongAnnotation(f"a {noun}'s name was wanted, {annotation!r:.100} was found")
        if annotation not in index_by_name:
            raise WrongAnnotation(f"{annotation!r} is none of the {len(index_by_name)} {plural} of the metadata")
        return index_by_name[annotation]

    return read


def missing(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names that are not known."""
    found = set(known)
    return [name for name in names if name not in found]
