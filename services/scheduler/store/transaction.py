"""One transaction of the writer: what the units in it share.

A unit that only asks by `ask` and adds rows by `write` costs no savepoint: its rows are written together with those of
the other units, and where that fails, unit by unit, so that each bears what is its own. Whoever takes `connection` gets
a savepoint, behind all that was added before. Events, answers, wake-ups and the revision are written once, at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

from sqlalchemy import Connection, bindparam, insert, update
from sqlalchemy.exc import DBAPIError

from services.chassis.errors import Unavailable
from services.chassis.log import get_logger
from services.scheduler.domain.dispatcher import Dispatcher
from services.scheduler.domain.fact import EncodedFact, Fact
from services.scheduler.domain.lease import AttemptKey
from services.scheduler.domain.project import Project
from services.scheduler.store.clock import Fence
from services.scheduler.store.committed import Committed, Given, Part, Refused, Stopping
from services.scheduler.store.statement import Statement, Values
from services.scheduler.store.tables import counters, outbox, request_ids
from services.scheduler.store.together import Step, is_trouble, together, words

log = get_logger(__name__)

REVISION = "revision"
_EMIT = Statement(insert(outbox), columns=("event_id", "subject", "payload", "create_time_us"))
_REMEMBER = Statement(insert(request_ids))
_COUNT = Statement(update(counters).where(counters.c.name == REVISION).values(value=bindparam("last")))
_SAVE_ROWS, _BACK_TO_ROWS = words("SAVEPOINT rows"), words("ROLLBACK TO SAVEPOINT rows")
_SAVE_UNIT, _BACK_TO_UNIT = words("SAVEPOINT unit"), words("ROLLBACK TO SAVEPOINT unit")
_RELEASE_ROWS, _RELEASE_UNIT = words("RELEASE SAVEPOINT rows"), words("RELEASE SAVEPOINT unit")

EncodeFact = Callable[..., EncodedFact]
"""encode(fact, event_id=…, time_us=…, trace_parent=…)."""
Question = tuple[Statement, Values]


class Transaction:
    """`begin` it, pass it to each unit, `end` it. `now_us` is one time for all of them.

    `unsure`: what the transaction before this one may have changed; it is told with what this one changes.
    """

    now_us: int
    fence: Fence

    def __init__(
        self,
        connection: Connection,
        *,
        dispatcher: Dispatcher,
        projects: dict[str, Project],
        encode_fact: EncodeFact,
        new_id: Callable[[], str],
        renew_sealed: Callable[[bytes], bytes],
        number: int = 0,
        unsure: Committed | None = None,
    ) -> None:
        self.new_id = new_id
        self.renew_sealed = renew_sealed
        """What is stored instead of what was sealed: by the newest key, which it may not have been a moment ago."""
        self.number = number
        self.trace_parent = ""
        self.dispatcher = dispatcher
        """Told of each change; what is rolled back is taken back there too."""
        self.idle_for_now: list[str] = []
        """Runners that take a job in this transaction or not at all."""
        self.projects = projects
        """Projects that were read, by id, in this transaction or in those before it."""
        self.doubts: list[Callable[[], None]] = []
        """To be called once before anything is given out: the dispatcher was told what did not come to be."""
        self.committed = unsure or Committed()
        self.committed.number = number
        self._connection = connection
        self._encode_fact = encode_fact
        self._revision = self._stored_revision = 0
        self._part = Part(writes_at_once=True)
        self._parts = [self._part]
        self._answered: dict[str, tuple[Part, Values]] = {}
        self._asked_ahead: dict[Statement, dict[tuple[Any, ...], Values]] = {}
        self._ahead: dict[tuple[Statement, tuple[Any, ...]], Values | None] = {}
        self._is_ahead_old = False
        self._unsaid: list[Step[None]] = []
        """What nobody waits for is said with what comes next: savepoints begun and ended, and rows."""
        self._pending: list[Part] = []
        """Whose rows are among that, up to `_rows_end`: it is not known yet whether they can be written."""
        self._rows_end = 0
        self._looked_at = 0
        """So many of the parts were looked at for rows."""

    def begin(self, fencing: Step[Fence], questions: Iterable[Question]) -> None:
        """Begin, and ask for what units will `ask` first."""
        fence, *found = self._together([fencing, *self._reading_ahead(questions)])
        self.fence, self.now_us = fence, fence.now_us
        self._revision = self._stored_revision = fence.revision
        self._remember_ahead(found)

    @property
    def connection(self) -> Connection:
        """For any statement. What was added before is written; from here on the unit has a savepoint."""
        self._write_from_here()
        self._together([])
        return self._connection

    def together(self, steps: Sequence[Step[Any]]) -> list[Any]:
        """What comes of the steps, said in one go. As for `connection`, the unit has a savepoint from here on."""
        self._write_from_here()
        return self._together(steps)

    def each(self, statement: Statement, many: Sequence[Values]) -> list[list[Values]]:
        """The rows for each of the values; see `together`."""
        (found,) = self.together([statement.asking(self._connection, many)])
        return cast(list[list[Values]], found)

    def changing(self, statement: Statement, many: Sequence[Values]) -> Step[None]:
        """The step that changes rows by the statement with each of the values."""
        return statement.changing(self._connection, many)

    def asking(self, statement: Statement, many: Sequence[Values]) -> Step[list[list[Values]]]:
        """The step that finds the rows for each of the values."""
        return statement.asking(self._connection, many)

    def read_ahead(self, questions: Iterable[Question]) -> None:
        """Ask for what units will `ask` first, all at once, as it is after all that was added before."""
        self._write_with_next()
        asking = self._reading_ahead(questions)
        self._remember_ahead(self._together(asking) if asking else [])

    def _reading_ahead(self, questions: Iterable[Question]) -> list[Step[list[list[Values]]]]:
        self._asked_ahead = {}
        for statement, values in questions:
            self._asked_ahead.setdefault(statement, {})[tuple(values.values())] = values
        return [self.asking(statement, list(asked.values())) for statement, asked in self._asked_ahead.items()]

    def _remember_ahead(self, each_found: Sequence[list[list[Values]]]) -> None:
        self._ahead.clear()
        self._is_ahead_old = False
        for (statement, asked), found in zip(self._asked_ahead.items(), each_found, strict=True):
            self._ahead |= {(statement, key): rows[0] if rows else None for key, rows in zip(asked, found, strict=True)}

    def ask(self, statement: Statement, **values: Any) -> Values | None:
        """The only row, or None, as it is after all that was added before."""
        key = statement, tuple(values.values())
        if key in self._ahead and not self._is_ahead_old:
            return self._ahead.pop(key)
        if self._part.rows:
            self._write_from_here()
        else:
            self._write_with_next()
        return self._one(statement, values)

    def look_up(self, statement: Statement, **values: Any) -> Values | None:
        """The only row, or None, of a table that no unit adds to by `write`; read ahead, of one that none changes."""
        key = statement, tuple(values.values())
        return self._ahead[key] if key in self._ahead else self._one(statement, values)

    def write(self, statement: Statement, values: Values, refused: Refused | None = None) -> None:
        """Write a row, with those of the other units or at once. No two units may write the same unless they ask.

        `refused` makes the error of the unit's caller where the row cannot be written; by itself it is the database's.
        """
        if not self._part.writes_at_once:
            self._part.rows.append((statement, values, refused))
            return
        try:
            self._together([self.changing(statement, [values])])
        except (DBAPIError, Unavailable) as error:
            if refused is None or is_trouble(error):
                raise
            raise refused(error) from error

    def next_revision(self, *, skipped: int = 0) -> int:
        """A number above every one that was given before, in any transaction that commits; so many are left out."""
        self._revision += skipped + 1
        return self._revision

    def emit(self, fact: Fact) -> None:
        """Write the event of `fact` into the outbox, with this transaction."""
        event_id = self.new_id()
        encoded = self._encode_fact(fact, event_id=event_id, time_us=self.now_us, trace_parent=self.trace_parent)
        row = {
            "event_id": event_id,
            "subject": encoded.subject,
            "payload": encoded.payload,
            "create_time_us": self.now_us,
        }
        self._part.events.append(row)

    def answer(self, request_id: str, digest: bytes, answer: bytes) -> None:
        """Remember the answer to a request, with this transaction."""
        row = {"request_id": request_id, "digest": digest, "answer": answer, "create_time_us": self.now_us}
        self._part.answers.append(row)
        self._answered[request_id] = (self._part, row)

    def answered(self, request_id: str) -> Values | None:
        """What a request was answered in this transaction, with its digest."""
        part, row = self._answered.get(request_id, (None, None))
        if part is None:
            return None
        self.settle()
        return row if part.error is None else None

    def wake_runner(self, runner_id: str) -> None:
        """What this runner should do may have changed."""
        self._part.runners.append(runner_id)

    def give(self, given: Given) -> None:
        """The runner has a job."""
        self._part.given.append(given)
        self._part.runners.append(given.runner.runner_id)

    def stop(self, stopping: Stopping) -> None:
        """The runner is to stop."""
        self._part.stopping.append(stopping)
        self._part.runners.append(stopping.attempt.runner_id)

    def move_on(self, job_uid: str) -> None:
        """The job's attempt is further than before."""
        self._part.moved.append(job_uid)

    def change_project(self, project_id: str) -> None:
        """The project is not any more what it was read as."""
        self._ahead.clear()
        self.projects.pop(project_id, None)
        self.committed.projects.add(project_id)

    def adopt(self, key: AttemptKey) -> None:
        """The attempt ended: its checkpoints are to be looked for."""
        self._part.adoptions.append(key)

    def come_late(self, job_uid: str) -> None:
        """A runner reported of an attempt of the job after its end."""
        self._part.late.append(job_uid)

    @contextlib.contextmanager
    def part(self) -> Iterator[Part]:
        """One unit: all or nothing of it, and whatever happens to it harms no other. Look at its `error` at the end."""
        part = Part()
        outer, self._part = self._part, part
        mark = self.dispatcher.mark()
        try:
            yield part
        except BaseException as error:
            part.fail(error)
            self.dispatcher.undo(mark)
            self.projects.clear()
            if part.writes_at_once:
                self._roll_back()
            raise
        finally:
            self._part = outer
        if part.writes_at_once:
            self._unsaid.append(_RELEASE_UNIT)
        self._parts.append(part)

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """All or nothing of what is done inside. Revisions that were given in it are lost, which harms nobody."""
        self._write_from_here()  # the unit's own savepoint comes first
        lists = self._part.lists
        mark, lengths = self.dispatcher.mark(), [len(each) for each in lists]
        self._unsaid.append(_SAVE_UNIT)
        try:
            yield
        except BaseException:
            for each, length in zip(lists, lengths, strict=True):
                del each[length:]
            self.dispatcher.undo(mark)
            self.projects.clear()
            self._roll_back()
            raise
        self._unsaid.append(_RELEASE_UNIT)

    @contextlib.contextmanager
    def apart(self, event: str, **ids: object) -> Iterator[None]:
        """A savepoint whose failure is logged as `event` and harms nothing else: for one of many rows.

        Trouble of the database itself is raised: nothing more can be done in this transaction.
        """
        try:
            with self.savepoint():
                yield
        except DBAPIError as error:
            if is_trouble(error):
                raise
            log.exception(event, **ids)
        except Exception:
            log.exception(event, **ids)

    def look_again(self) -> None:
        """Let the dispatcher forget what did not come to be."""
        doubts, self.doubts = self.doubts, []
        for look_again in doubts:
            look_again()

    def settle(self) -> None:
        """Write what units that have ended have added: all together, or where that fails one by one."""
        self._write_with_next()
        if self._pending:
            self._together([])

    def end(self, commit: Callable[[], None]) -> bool:
        """Write what was added and collected, and commit. Whether that is done: where a unit's rows cannot be written
        nothing is on disk yet, the unit has failed, and there may be `doubts`.
        """
        self._write_with_next()
        if any(statement.guarded for part in self._pending for statement, _, _ in part.rows):
            self._together([])  # what the guards find must be known before the commit
        steps = self._ending()
        unsaid, pending = self._taken()
        try:
            together(self._connection, [*unsaid, *steps], commit=commit)
        except (DBAPIError, Unavailable) as error:
            if not pending or is_trouble(error):
                self._tell()
                raise
            self._write_again(pending, unsaid)
            return False
        self._tell()
        return True

    def _ending(self) -> list[Step[None]]:
        """What writes all that was collected."""
        steps: list[Step[None]] = []
        if self._revision != self._stored_revision:
            steps.append(self.changing(_COUNT, [{"last": self._revision}]))
        answers = [row for part in self._parts for row in part.answers]
        if answers:
            steps.append(self.changing(_REMEMBER, answers))
        events = [row for part in self._parts for row in part.events]
        if events:
            steps.append(self.changing(_EMIT, events))
        return steps

    def _tell(self) -> None:
        """It may be on disk: who waits is to be told."""
        if self._revision != self._stored_revision:
            self.committed.revision = self._revision
        for part in self._parts:
            self.committed.add(part)

    @cached_property
    def given(self) -> dict[str, Given]:
        """What this transaction has given out, by runner; to be asked once that is done."""
        return {given.runner.runner_id: given for part in self._parts for given in part.given}

    @cached_property
    def woken(self) -> frozenset[str]:
        """Runners for which something has changed; to be asked once all units are done."""
        return frozenset(runner_id for part in self._parts for runner_id in part.runners)

    def _write_with_next(self) -> None:
        """What units that have ended have added is written with what is said next."""
        parts = [part for part in self._parts[self._looked_at :] if part.rows]
        self._looked_at = len(self._parts)
        if not parts:
            return
        if self._pending:
            self._together([])
        self._unsaid += [_SAVE_ROWS, *self._writing(parts)]
        self._pending, self._rows_end = parts, len(self._unsaid)

    def _write_again(self, parts: Sequence[Part], unsaid: Sequence[Step[None]]) -> None:
        """Something failed, of the rows or behind them: write the rows again, together or one by one. What was behind
        them is unsaid again.
        """
        behind = unsaid[self._rows_end :]
        self._together([_BACK_TO_ROWS, _RELEASE_ROWS])
        if not self._settled(parts):
            for part in parts:
                self._settled([part])
        self._unsaid += behind

    def _settled(self, parts: Sequence[Part]) -> bool:
        """Whether the rows of the parts are written; a part that fails alone has the error."""
        try:
            self._together([_SAVE_ROWS, *self._writing(parts)])
        except (DBAPIError, Unavailable) as error:
            if is_trouble(error):
                raise
            self._together([_BACK_TO_ROWS, _RELEASE_ROWS])
            if len(parts) == 1:
                refusals = [refused for _, _, refused in parts[0].rows if refused is not None]
                parts[0].fail(refusals[0](error) if refusals else error)
            return False
        self._unsaid.append(_RELEASE_ROWS)
        for part in parts:
            part.rows.clear()
        return True

    def _write_from_here(self) -> None:
        """The unit has a savepoint of its own, and what it has added is written."""
        self._is_ahead_old = True
        if self._part.writes_at_once:
            return
        self._write_with_next()
        self._unsaid.append(_SAVE_UNIT)
        self._part.writes_at_once = True
        if self._part.rows:
            self._together(list(self._writing([self._part])))
            self._part.rows.clear()

    def _writing(self, parts: Sequence[Part]) -> Iterator[Step[None]]:
        """The rows in each part's order, those of parts that write by the same statements together."""
        alike: dict[tuple[Statement, ...], list[Part]] = {}
        for part in parts:
            alike.setdefault(tuple(statement for statement, _, _ in part.rows), []).append(part)
        for statements, group in alike.items():
            for index, statement in enumerate(statements):
                yield self.changing(statement, [part.rows[index][1] for part in group])

    def _roll_back(self) -> None:
        self._together([_BACK_TO_UNIT, _RELEASE_UNIT])

    def _one(self, statement: Statement, values: Values) -> Values | None:
        ((rows,),) = self._together([self.asking(statement, [values])])
        assert len(rows) <= 1, "there is a key"
        return rows[0] if rows else None

    def _together(self, steps: Sequence[Step[Any]]) -> list[Any]:
        """What comes of the steps, behind all that was not said yet."""
        unsaid, pending = self._taken()
        if not unsaid and not steps:
            return []
        try:
            found = together(self._connection, [*unsaid, *steps])
        except (DBAPIError, Unavailable) as error:
            if not pending or is_trouble(error):
                raise
            self._write_again(pending, unsaid)
            return self._together(steps)
        for part in pending:
            part.rows.clear()
        return found[len(unsaid) :]

    def _taken(self) -> tuple[list[Step[None]], list[Part]]:
        """What is to be said now, and whose rows are among it."""
        taken = self._unsaid, self._pending
        self._unsaid, self._pending = [], []
        return taken
