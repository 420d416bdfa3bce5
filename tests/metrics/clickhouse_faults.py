"""What the HTTP front of the tests is told to do to requests, and what runs there just now."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to requests whose SQL has `match` in it (a regular expression, in any case)."""

    match: str
    times: int | None = None
    """To so many requests; None: to all, until the fault is removed."""
    chance: float = 1.0
    """To which share of them."""
    seed: int = 0
    hold: bool = False
    """Before anything takes effect: until the fault is released, or the query killed."""
    delay_seconds: float = 0.0
    """The same for a time."""
    fail: Literal["", "before", "after"] = ""
    """Before it takes effect, or after."""
    code: int = 0
    """ClickHouse's code of the failure; 0: the connection is cut, and there is no answer."""
    answer: Literal["whole", "half"] = "whole"
    framing: Literal["length", "chunked", "close"] = "length"
    """How the client knows where an answer ends; with `close` it cannot tell half of one from the whole."""


class Killed(Exception):  # noqa: N818  # what happened to the query, not a mistake
    """KILL QUERY has ended the query before it took effect."""


@dataclass(eq=False, kw_only=True)
class Query:
    """A request that has come in whole and is not answered yet."""

    number: int
    query_id: str
    sql: str
    began: float = field(default_factory=time.monotonic)
    state: Literal["waiting", "held", "running"] = "waiting"
    killed: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def mark(self) -> str:
        """What its SQL begins with in the engine, which takes no query_id from outside."""
        return f"/* front {self.number} */"

    def shown(self) -> dict[str, Any]:
        elapsed = time.monotonic() - self.began
        return {"query_id": self.query_id, "sql": self.sql, "state": self.state, "elapsed_seconds": elapsed}


@dataclass(eq=False, kw_only=True)
class Rule:
    """A fault in force."""

    fault: Fault
    pattern: re.Pattern[str]
    random: random.Random
    matched: int = 0
    released: threading.Event = field(default_factory=threading.Event)


class Faults:
    """All faults and all running queries of one front. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._rules: dict[int, Rule] = {}
        self._queries: dict[int, Query] = {}
        self.kills_refused = False

    def add(self, fault: Fault) -> int:
        """From now on; the number by which it is removed. The first one that matches counts."""
        pattern = re.compile(fault.match, re.IGNORECASE | re.DOTALL)
        with self._lock:
            number = next(self._numbers)
            self._rules[number] = Rule(fault=fault, pattern=pattern, random=random.Random(fault.seed))
        return number

    def remove(self, number: int) -> None:
        """No request meets it any more, and what it holds goes on."""
        with self._lock:
            rule = self._rules.pop(number, None)
        if rule is not None:
            rule.released.set()

    def matched(self, number: int) -> int:
        """How many requests have met it."""
        with self._lock:
            rule = self._rules.get(number)
            return rule.matched if rule is not None else 0

    def begin(self, query_id: str, sql: str) -> Query | None:
        """A request has come in; None where a query with this id runs already, which ClickHouse refuses."""
        with self._lock:
            if query_id and any(query.query_id == query_id for query in self._queries.values()):
                return None
            number = next(self._numbers)
            query = self._queries[number] = Query(number=number, query_id=query_id or f"front-{number}", sql=sql)
            return query

    def end(self, query: Query) -> None:
        """It is over, one way or the other: nothing of it can take effect any more."""
        with self._lock:
            del self._queries[query.number]
        query.ended.set()

    def meet(self, query: Query) -> Fault | None:
        """The fault that this query meets. Waits where it is to be held. Raises Killed."""
        rule = self._rule_for(query.sql)
        if rule is None:
            return None
        if rule.fault.hold:
            query.state = "held"
            while not rule.released.wait(0.01) and not query.killed.is_set():
                pass
        query.killed.wait(rule.fault.delay_seconds)
        return rule.fault

    def start(self, query: Query) -> None:
        """From here on it takes effect. Raises Killed where it must not."""
        with self._lock:
            if query.killed.is_set():
                raise Killed
            query.state = "running"

    def queries(self) -> list[Query]:
        """What runs."""
        with self._lock:
            return list(self._queries.values())

    def _rule_for(self, sql: str) -> Rule | None:
        with self._lock:
            for rule in self._rules.values():
                fault = rule.fault
                used_up = fault.times is not None and rule.matched >= fault.times
                if used_up or not rule.pattern.search(sql) or rule.random.random() >= fault.chance:
                    continue
                rule.matched += 1
                return rule
        return None
