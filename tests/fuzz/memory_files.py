"""The files of a case, as a foreign format reads them. Nothing here ever waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from tests.fuzz.case import Case


class MemoryFiles:
    """Implements Files of foreign_format."""

    def __init__(self, case: Case) -> None:
        self._case = case

    @property
    def paths(self) -> Mapping[str, int]:
        return {path: len(content) for path, content in self._case.items()}

    async def read(self, path: str) -> bytes:
        return self._case[path]

    async def head(self, path: str) -> bytes:
        return self._case[path][:4096]

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def read_each(self, paths: Sequence[str], take: Callable[[str, bytes], None], *, kept: bool = True) -> None:
        for path in paths:
            take(path, self._case[path])


def result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that never waits gives."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")
