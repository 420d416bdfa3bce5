"""Carries out what the dispatcher proposes at the end of each transaction: after it nothing waits that could be served.

A claim is checked and written by the transaction; where the rows say something else than the dispatcher, they are
right, and it is told anew. Belongs to the writer's thread, but for `WaitingCall.over`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError, IntegrityError

from services.chassis.errors import FailedPrecondition
from services.chassis.log import get_logger
from services.scheduler.domain.dispatcher import Dispatcher, Proposal
from services.scheduler.domain.lease import Runner
from services.scheduler.store.attempts import active_attempt
from services.scheduler.store.claims import Claim, claim_jobs
from services.scheduler.store.queue import reload_all, reload_project
from services.scheduler.store.tables import jobs
from services.scheduler.store.together import is_trouble
from services.scheduler.store.transaction import Transaction

log = get_logger(__name__)

REMEMBERED = 1_000
"""Runners that are remembered without a look at which of them are gone."""


class WaitingCall:
    """A place of a runner that waits, call after call. Whoever holds it sets `over`; from then on it gets no job."""

    def __init__(self) -> None:
        self.over = False


@dataclass(frozen=True, kw_only=True)
class _Idle:
    runner: Runner
    call: WaitingCall | None


class Placing:
    """`place` is to be called before each commit, `reload` before anything else is told."""

    def __init__(self, *, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._idle: dict[str, _Idle] = {}
        """Of each runner the last call in which it was idle; which of them are idle now the dispatcher says."""
        self._given: dict[str, int] = {}
        """Of each runner the last transaction that gave it a job."""
        self._look_beyond = REMEMBERED

    def wait(self, transaction: Transaction, runner: Runner, call: WaitingCall | None) -> None:
        """The runner is idle for as long as its call waits, or (None) in this transaction alone."""
        self._idle[runner.runner_id] = _Idle(runner=runner, call=call)
        if not runner.takes_jobs:
            return
        transaction.dispatcher.register(runner.runner_id, runner.capabilities)
        transaction.dispatcher.wait(runner.runner_id)
        if call is None:
            transaction.idle_for_now.append(runner.runner_id)

    def has_given_since(self, runner_id: str, number: int) -> bool:
        """Whether a transaction after this one may have given the runner a job."""
        return self._given.get(runner_id, 0) > number

    def wait_anew(self, transaction: Transaction, runner: Runner) -> None:
        """The runner takes jobs again: it gets one at once where its call still waits."""
        idle = self._idle.get(runner.runner_id)
        if runner.lost or idle is None or idle.call is None or idle.call.over:
            return
        if active_attempt(transaction.connection, runner.runner_id) is None:
            self.wait(transaction, runner, idle.call)

    def place(self, transaction: Transaction) -> None:
        """Give ready jobs to idle runners, until none of them fit."""
        dispatcher = transaction.dispatcher
        if not dispatcher.mark() and not transaction.doubts:
            return  # nothing has changed
        is_certain = False
        while not is_certain:
            self._place(transaction)
            is_certain = not transaction.doubts
        for runner_id in transaction.idle_for_now:
            dispatcher.leave(runner_id)
        if self.remembered > self._look_beyond:
            self._forget(dispatcher)

    def _place(self, transaction: Transaction) -> None:
        """Give out what can be given. What units have added may turn out not to be there: then there are doubts."""
        dispatcher = transaction.dispatcher
        transaction.look_again()
        mark = dispatcher.mark()
        claims = list(self._claims(transaction))
        if claims and not self._carried_out(transaction, claims):
            dispatcher.undo(mark)
            transaction.look_again()
            while (proposal := self._proposal(transaction)) is not None:
                self._carry_out(transaction, proposal)

    @property
    def remembered(self) -> int:
        """Runners of which something is known here; those that are gone are forgotten where there are very many."""
        return len(self._idle)

    def _forget(self, dispatcher: Dispatcher) -> None:
        """Machines come and go, each with a name of its own."""
        for runner_id, idle in list(self._idle.items()):
            waits = idle.call is not None and not idle.call.over
            if not waits and not dispatcher.is_registered(runner_id):
                del self._idle[runner_id]
                self._given.pop(runner_id, None)
        self._look_beyond = max(REMEMBERED, 2 * self.remembered)

    def reload(self, transaction: Transaction) -> None:
        """Tell the dispatcher all that the rows say. Who waited still waits."""
        dispatcher = transaction.dispatcher
        dispatcher.clear()
        reload_all(transaction)
        for runner_id, idle in list(self._idle.items()):
            if idle.call is None or idle.call.over:
                del self._idle[runner_id]
            elif dispatcher.is_registered(runner_id) and active_attempt(transaction.connection, runner_id) is None:
                dispatcher.wait(runner_id)
        dispatcher.keep()

    def _claims(self, transaction: Transaction) -> Iterator[Claim]:
        """Everything that can be given out now, as told to the dispatcher."""
        while (proposal := self._proposal(transaction)) is not None:
            yield self._told(transaction, proposal)

    def _proposal(self, transaction: Transaction) -> Proposal | None:
        """The dispatcher's next one whose runner still waits."""
        dispatcher = transaction.dispatcher
        while (proposal := dispatcher.propose()) is not None:
            call = self._idle[proposal.runner_id].call
            if call is None or not call.over:
                return proposal
            dispatcher.leave(proposal.runner_id)
        return None

    def _told(self, transaction: Transaction, proposal: Proposal) -> Claim:
        dispatcher, revision = transaction.dispatcher, transaction.next_revision()
        if proposal.overtaken:
            dispatcher.overtake(proposal.project_uid)
        dispatcher.occupy(proposal.project_uid, served=revision)
        dispatcher.leave(proposal.runner_id)
        self._given[proposal.runner_id] = transaction.number
        runner = self._idle[proposal.runner_id].runner
        return Claim(job=proposal.job, runner=runner, revision=revision, overtaken=proposal.overtaken)

    def _carried_out(self, transaction: Transaction, claims: Sequence[Claim]) -> bool:
        """Whether all of them were given out together; else none was, and one by one it will show what is wrong."""
        try:
            with transaction.savepoint():
                claim_jobs(transaction, claims, lease_seconds=self._lease_seconds)
        except DBAPIError as error:
            if is_trouble(error):
                raise
            return False
        except Exception:  # noqa: BLE001  # it comes again where the one is tried that it belongs to, and is logged
            return False
        return True

    def _carry_out(self, transaction: Transaction, proposal: Proposal) -> None:
        try:
            with transaction.savepoint():
                claim_jobs(transaction, [self._told(transaction, proposal)], lease_seconds=self._lease_seconds)
        except (IntegrityError, FailedPrecondition) as error:
            problem = type(error).__name__
            log.warning("claim_too_late", job_uid=proposal.job.uid, runner_id=proposal.runner_id, problem=problem)
            self._look_again(transaction, proposal)
        except DBAPIError as error:
            if is_trouble(error):
                raise
            self._park(transaction, proposal)
        except Exception:  # noqa: BLE001  # `_park` logs it: the other jobs must not wait for this one
            self._park(transaction, proposal)

    def _look_again(self, transaction: Transaction, proposal: Proposal) -> None:
        """A slot turned out to be taken: the rows are right."""
        reload_project(transaction, proposal.project_uid)
        if active_attempt(transaction.connection, proposal.runner_id) is not None:
            transaction.dispatcher.leave(proposal.runner_id)
        elif transaction.dispatcher.propose() == proposal:  # nothing explains it: do not turn in a circle
            transaction.dispatcher.drop(proposal.project_uid)

    def _park(self, transaction: Transaction, proposal: Proposal) -> None:
        """A job that cannot be given out stays where it is, and the ones behind it go on."""
        log.exception("job_parked", job_uid=proposal.job.uid)
        is_it = jobs.c.uid == proposal.job.uid
        transaction.connection.execute(update(jobs).where(is_it).values(ready=False))
        reload_project(transaction, proposal.project_uid)
