"""Where a writer is on its way into metrics, and what may happen to it there."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Phase(enum.Enum):
    """Where a writer is. It is open in `OPENING`, `WRITING` and `FINISHING`."""

    CLOSED = "closed"
    OPENING = "opening"
    WRITING = "writing"
    FINISHING = "finishing"
    FINISHED = "finished"
    PAUSED = "paused"
    SET_ASIDE = "set aside"


OPEN = frozenset({Phase.OPENING, Phase.WRITING, Phase.FINISHING})


class Event(enum.Enum):
    """What can happen to a writer."""

    OPEN_SENT = "open sent"
    OPENED = "opened"
    GAP_FOUND = "gap found"
    FINISH_SENT = "finish sent"
    FINISHED = "finished"
    REFUSED_FOR_NOW = "refused for now"
    MESSAGE_REFUSED = "message refused"
    OPENING_REFUSED = "opening refused"
    PAUSE_OVER = "pause over"
    STREAM_ENDED = "stream ended"


_REFUSALS = {
    Event.REFUSED_FOR_NOW: Phase.PAUSED,
    Event.MESSAGE_REFUSED: Phase.PAUSED,
    Event.OPENING_REFUSED: Phase.SET_ASIDE,
}

TRANSITIONS: Mapping[Phase, Mapping[Event, Phase]] = {
    # Entered at the start of the agent, by the end of a stream, after a pause, and at a gap. Left as soon as there is a
    # token and a place on a stream.
    Phase.CLOSED: {
        Event.OPEN_SENT: Phase.OPENING,
    },
    # Entered with the opening. Left by the answer, which tells what is stored.
    Phase.OPENING: {
        **_REFUSALS,
        Event.OPENED: Phase.WRITING,
        Event.FINISHED: Phase.FINISHED,
        Event.STREAM_ENDED: Phase.CLOSED,
    },
    # Entered by that answer. Left by the end of the spool, by a refusal, and at a gap: what our disk has lost, or what
    # metrics never takes. A writer is opened behind a gap, so that it is recorded.
    Phase.WRITING: {
        **_REFUSALS,
        Event.GAP_FOUND: Phase.CLOSED,
        Event.FINISH_SENT: Phase.FINISHING,
        Event.FINISHED: Phase.FINISHED,
        Event.STREAM_ENDED: Phase.CLOSED,
    },
    # Entered with the word that nothing follows. Left by the answer.
    Phase.FINISHING: {
        **_REFUSALS,
        Event.FINISHED: Phase.FINISHED,
        Event.STREAM_ENDED: Phase.CLOSED,
    },
    # The end is recorded; never left. With both writers here the spool is deleted.
    Phase.FINISHED: {},
    # Entered by a refusal that passes, or that concerns one message. Left after a pause of the writer's own.
    Phase.PAUSED: {
        Event.PAUSE_OVER: Phase.CLOSED,
        Event.STREAM_ENDED: Phase.PAUSED,
    },
    # Entered by a refusal of the opening that would only be repeated. Left after a long pause; a new agent tries at
    # once. The spool is kept until then, within its limits, unless the scheduler says that nobody wants it.
    Phase.SET_ASIDE: {
        Event.PAUSE_OVER: Phase.CLOSED,
        Event.STREAM_ENDED: Phase.SET_ASIDE,
    },
}
"""What is not in the table changes nothing: an answer may come when what it is about is over."""
