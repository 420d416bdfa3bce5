import pytest

from runner.agent.decision import (
    Action,
    AttemptKey,
    Begin,
    Decline,
    Drop,
    Holding,
    Nothing,
    Stop,
    Stopping,
    Wanted,
    WantIdle,
    WantRun,
    WantStop,
    WantUnknown,
    decide,
)

A, B = AttemptKey(job_uid="a", epoch=1), AttemptKey(job_uid="b", epoch=2)
IDLE = Holding()
HELD = Holding(key=A)
STOPPING = Holding(key=A, stopping=Stopping.CHECKPOINT)
KILLING = Holding(key=A, stopping=Stopping.IMMEDIATE)
DRAINING = Holding(draining=True)


def stop(key: AttemptKey, stopping: Stopping = Stopping.CHECKPOINT, *, hand_back: bool = False) -> WantStop:
    return WantStop(key=key, stopping=stopping, grace_seconds=30, hand_back=hand_back)


@pytest.mark.parametrize(
    ("now", "closed", "wanted", "action"),
    [
        (IDLE, set(), WantIdle(), Nothing()),
        (IDLE, set(), WantRun(key=A, assigned=True), Begin(key=A)),
        (IDLE, set(), WantRun(key=A, assigned=False), Nothing()),
        (IDLE, {A}, WantRun(key=A, assigned=True), Nothing()),
        (IDLE, {A}, WantRun(key=B, assigned=True), Begin(key=B)),
        (DRAINING, set(), WantRun(key=A, assigned=True), Decline(key=A, hand_back=True)),
        (DRAINING, {A}, WantRun(key=A, assigned=True), Nothing()),
        (IDLE, set(), stop(A), Decline(key=A, hand_back=False)),
        (IDLE, set(), stop(A, hand_back=True), Decline(key=A, hand_back=True)),
        (IDLE, {A}, stop(A), Nothing()),
        (HELD, set(), WantRun(key=A, assigned=False), Nothing()),
        (HELD, set(), WantRun(key=A, assigned=True), Nothing()),
        (STOPPING, set(), WantRun(key=A, assigned=False), Nothing()),
        (HELD, set(), WantIdle(), Drop()),
        (HELD, set(), WantUnknown(), Nothing()),
        (IDLE, set(), WantUnknown(), Nothing()),
        (HELD, set(), WantRun(key=B, assigned=True), Drop()),
        (HELD, set(), stop(B), Drop()),
        (HELD, set(), stop(A), Stop(stopping=Stopping.CHECKPOINT, grace_seconds=30, hand_back=False)),
        (HELD, set(), stop(A, hand_back=True), Stop(stopping=Stopping.CHECKPOINT, grace_seconds=30, hand_back=True)),
        (STOPPING, set(), stop(A), Nothing()),
        (
            STOPPING,
            set(),
            stop(A, Stopping.IMMEDIATE),
            Stop(stopping=Stopping.IMMEDIATE, grace_seconds=30, hand_back=False),
        ),
        (KILLING, set(), stop(A, Stopping.IMMEDIATE), Nothing()),
        (KILLING, set(), stop(A), Nothing()),
    ],
)
def test_what_the_scheduler_wants_is_made_true(
    now: Holding, closed: set[AttemptKey], wanted: Wanted, action: Action
) -> None:
    assert decide(now, now, frozenset(closed), wanted) == action


@pytest.mark.parametrize("wanted", [WantIdle(), WantRun(key=B, assigned=True), stop(A), stop(B)])
@pytest.mark.parametrize(("said", "now"), [(IDLE, HELD), (HELD, IDLE), (HELD, Holding(key=B))])
def test_an_answer_to_what_is_no_longer_true_changes_nothing(said: Holding, now: Holding, wanted: Wanted) -> None:
    assert decide(said, now, frozenset(), wanted) == Nothing()
