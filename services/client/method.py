"""Methods of both faces from one definition: an operation, bound to what it is done to, blocks or is awaited.

A class says `wait = Gives(on_job.waited, JOB)` once. On a handle of the blocking driver that is a method that returns a
Job; on one of the awaiting driver it returns what an event loop awaits for an AsyncJob. Type checkers know which.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, TypeVar, overload

from services.client.call import Operation, OperationOf, P, Reading, ReadingOf, Result, Transport
from services.client.driver import AwaitingDriver, BlockingDriver

Driver = TypeVar("Driver", bound=BlockingDriver | AwaitingDriver)
Place = TypeVar("Place")
Place_co = TypeVar("Place_co", covariant=True)
Given = TypeVar("Given")
Blocking = TypeVar("Blocking")
Awaiting = TypeVar("Awaiting")


class Handle(Generic[Driver, Place_co]):
    """Something of an installation: what operations take after the transport."""

    def __init__(self, driver: Driver, place: Place_co) -> None:
        self.driver = driver
        self.place = place


@dataclass(frozen=True)
class Kind(Generic[Given, Blocking, Awaiting]):
    """What an answer becomes: a handle of the face that asked."""

    blocking: Callable[[BlockingDriver, Given], Blocking]
    awaiting: Callable[[AwaitingDriver, Given], Awaiting]

    def made(self, driver: Any, given: Given) -> Any:
        """The handle."""
        make: Any = self.blocking if isinstance(driver, BlockingDriver) else self.awaiting
        return make(driver, given)


class Gives(Generic[Place, P, Given, Blocking, Awaiting]):
    """Runs the operation on its handle's place, and makes a handle of its result."""

    def __init__(
        self, operation: OperationOf[Concatenate[Place, P], Given], result: Kind[Given, Blocking, Awaiting]
    ) -> None:
        async def made(handle: Handle[Any, Place], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return result.made(handle.driver, await operation(handle.driver, handle.place, *args, **kwargs))

        def act(handle: Handle[Any, Place], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return handle.driver.run(made(handle, *args, **kwargs))

        self._method = _like(operation, act)

    @overload
    def __get__(self, handle: Handle[BlockingDriver, Place], kind: type) -> Callable[P, Blocking]: ...
    @overload
    def __get__(self, handle: Handle[AwaitingDriver, Place], kind: type) -> Callable[P, Operation[Awaiting]]: ...
    def __get__(self, handle: Any, kind: type) -> Any:
        return self._method.__get__(handle, kind)


class Does(Gives[Place, P, Result, Result, Result]):
    """Runs the operation on its handle's place, for its result."""

    def __init__(self, operation: OperationOf[Concatenate[Place, P], Result]) -> None:
        super().__init__(operation, Kind(lambda driver, made: made, lambda driver, made: made))


class Reads(Generic[Place, P, Given, Blocking, Awaiting]):
    """Iterates over what the reading gives, each made into a handle."""

    def __init__(self, reading: ReadingOf[Concatenate[Place, P], Given], item: Kind[Given, Blocking, Awaiting]) -> None:
        async def made(driver: Any, items: Reading[Given]) -> Reading[Any]:
            async with aclosing(items):
                async for given in items:
                    yield item.made(driver, given)

        def act(handle: Handle[Any, Place], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            items = reading(handle.driver, handle.place, *args, **kwargs)
            return handle.driver.iterate(made(handle.driver, items))

        self._method = _like(reading, act)

    @overload
    def __get__(self, handle: Handle[BlockingDriver, Place], kind: type) -> Callable[P, Iterator[Blocking]]: ...
    @overload
    def __get__(self, handle: Handle[AwaitingDriver, Place], kind: type) -> Callable[P, Reading[Awaiting]]: ...
    def __get__(self, handle: Any, kind: type) -> Any:
        return self._method.__get__(handle, kind)


def anywhere(operation: OperationOf[P, Result]) -> OperationOf[Concatenate[None, P], Result]:
    """The operation as one of the installation itself, which has no place to be named first."""

    def at(transport: Transport, place: None, /, *args: P.args, **kwargs: P.kwargs) -> Operation[Result]:
        return operation(transport, *args, **kwargs)

    found = inspect.signature(operation)
    first, *others = found.parameters.values()
    looking: Any = functools.wraps(operation)(at)
    looking.__signature__ = found.replace(parameters=[first, first.replace(name="_"), *others])
    return at


def _like(operation: Callable[..., Any], act: Callable[..., Any]) -> Any:
    """A method that looks like the operation: its words, and its parameters but for the transport and the place."""
    method: Any = functools.wraps(operation)(act)
    found = inspect.signature(operation)
    _, place, *others = found.parameters.values()
    method.__signature__ = found.replace(parameters=[place.replace(name="self", annotation=place.empty), *others])
    return method
