"""Methods of both faces from one definition: an operation, bound to what it is done to, blocks or is awaited.

A class says `wait = Gives(on_job.waited, JOB)` once. On a handle of the blocking driver that is a method that returns a
Job; on one of the awaiting driver it returns what an event loop awaits for an AsyncJob. Type checkers know which.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from services.client.call import Operation, Reading, mapped, then
from services.client.driver import AwaitingDriver, BlockingDriver

P = ParamSpec("P")
Driver = TypeVar("Driver", bound=BlockingDriver | AwaitingDriver)
Place = TypeVar("Place")
Place_co = TypeVar("Place_co", covariant=True)
Given = TypeVar("Given")
Made = TypeVar("Made")
Blocking = TypeVar("Blocking")
Awaiting = TypeVar("Awaiting")


class Handle(Generic[Driver, Place_co]):
    """Something of an installation: what operations take first."""

    def __init__(self, driver: Driver, place: Place_co) -> None:
        self.driver = driver
        self.place = place


class Kind(Generic[Given, Blocking, Awaiting]):
    """What an answer becomes: a handle of the face that asked."""

    def __init__(
        self,
        blocking: Callable[[BlockingDriver, Given], Blocking],
        awaiting: Callable[[AwaitingDriver, Given], Awaiting],
    ) -> None:
        self._blocking, self._awaiting = blocking, awaiting

    def made(self, driver: Any, given: Given) -> Any:
        """The handle."""
        make: Any = self._blocking if isinstance(driver, BlockingDriver) else self._awaiting
        return make(driver, given)


class _Method:
    """Looks like the operation: its words, its parameters but for the first."""

    def __init__(self, operation: Callable[..., Any], act: Callable[..., Any]) -> None:
        self._method: Any = functools.wraps(operation)(act)
        self.__doc__ = operation.__doc__


class Does(_Method, Generic[Place, P, Made]):
    """Runs the operation on its handle's place, for its result."""

    def __init__(self, operation: Callable[Concatenate[Place, P], Operation[Made]]) -> None:
        def act(handle: Handle[Any, Place], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return handle.driver.run(operation(handle.place, *args, **kwargs))

        super().__init__(operation, act)

    @overload
    def __get__(self, handle: Handle[BlockingDriver, Place], kind: type) -> Callable[P, Made]: ...
    @overload
    def __get__(self, handle: Handle[AwaitingDriver, Place], kind: type) -> Callable[P, Coroutine[Any, Any, Made]]: ...
    def __get__(self, handle: Any, kind: type) -> Any:
        return self._method.__get__(handle, kind)


class Gives(_Method, Generic[Place, P, Given, Blocking, Awaiting]):
    """Runs the operation, and makes a handle of its result."""

    def __init__(
        self, operation: Callable[Concatenate[Place, P], Operation[Given]], result: Kind[Given, Blocking, Awaiting]
    ) -> None:
        def act(handle: Handle[Any, Place], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            make = functools.partial(result.made, handle.driver)
            return handle.driver.run(then(operation(handle.place, *args, **kwargs), make))

        super().__init__(operation, act)

    @overload
    def __get__(self, handle: Handle[BlockingDriver, Place], kind: type) -> Callable[P, Blocking]: ...
    @overload
    def __get__(
        self, handle: Handle[AwaitingDriver, Place], kind: type
    ) -> Callable[P, Coroutine[Any, Any, Awaiting]]: ...
    def __get__(self, handle: Any, kind: type) -> Any:
        return self._method.__get__(handle, kind)


class Reads(_Method, Generic[Place, P, Given, Blocking, Awaiting]):
    """Iterates over what the reading emits, each made into a handle."""

    def __init__(
        self, reading: Callable[Concatenate[Place, P], Reading[Given]], item: Kind[Given, Blocking, Awaiting]
    ) -> None:
        def act(handle: Handle[Any, Place], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            items = mapped(reading(handle.place, *args, **kwargs), lambda given: [item.made(handle.driver, given)])
            return handle.driver.iterate(items)

        super().__init__(reading, act)

    @overload
    def __get__(self, handle: Handle[BlockingDriver, Place], kind: type) -> Callable[P, Iterator[Blocking]]: ...
    @overload
    def __get__(
        self, handle: Handle[AwaitingDriver, Place], kind: type
    ) -> Callable[P, AsyncGenerator[Awaiting, None]]: ...
    def __get__(self, handle: Any, kind: type) -> Any:
        return self._method.__get__(handle, kind)


def anywhere(operation: Callable[P, Operation[Made]]) -> Callable[Concatenate[None, P], Operation[Made]]:
    """The operation as one of the installation itself, which has no place to be named first."""

    def at(place: None, /, *args: P.args, **kwargs: P.kwargs) -> Operation[Made]:
        return operation(*args, **kwargs)

    found = inspect.signature(operation)
    first = inspect.Parameter("_", inspect.Parameter.POSITIONAL_ONLY)
    looking: Any = functools.wraps(operation)(at)
    looking.__signature__ = found.replace(parameters=[first, *found.parameters.values()])
    return at
