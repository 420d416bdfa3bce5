"""Two metrics processes over one ClickHouse; writers move between them, inserts hang, and either process dies."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.failing import INSERT_SECONDS, INSERTS
from tests.chaos.round import Kind, Played, settle, wire_figures
from tests.chaos.stand import Stand, stand

CLIENTS = 5
CLIENTS_BRIEF = 3
EVENTS = 6
MOVES_AN_EVENT = 3
PAUSE_SECONDS = (0.1, 0.5)
FLAGS = (
    *("--insert-seconds", str(INSERT_SECONDS)),
    # An insert takes no longer than --insert-seconds once it has begun: who may not kill one waits little longer.
    *("--lease-settle-seconds", str(2 * INSERT_SECONDS)),
    *("--lease-seconds", "6"),
    *("--lease-renew-seconds", "1"),
)


@contextmanager
def open_stand(folder: Path, randomness: random.Random) -> Iterator[Stand]:
    with stand(folder, randomness, front=True, services=2, flags=FLAGS) as made:
        yield made


def play(stand: Stand, folder: Path) -> Played:
    """Inserts are held or late while their writers go to the other process, which must not let both land."""
    clickhouse, chance = stand.clickhouse, stand.random
    assert clickhouse is not None
    jobs = stand.write(clients=CLIENTS_BRIEF if stand.brief else CLIENTS)
    stand.wait(0.5)
    figures = {"moves": 0.0, "kills": 0.0, "late inserts": 0.0}
    clickhouse.refuse_kills(chance.random() < 0.25)
    for _ in range(EVENTS // 2 if stand.brief else EVENTS):
        late = {"hold": True} if chance.random() < 0.5 else {"delay_seconds": chance.uniform(0.05, INSERT_SECONDS + 1)}
        with clickhouse.fault(INSERTS, times=chance.randrange(1, 4), **late) as fault:
            stand.wait(chance.uniform(*PAUSE_SECONDS))
            if chance.random() < 0.4:
                victim = chance.choice(stand.servers)
                victim.kill()
                figures["kills"] += 1
                stand.move(MOVES_AN_EVENT)
                stand.wait(chance.uniform(*PAUSE_SECONDS))
                victim.start()
            else:
                stand.move(MOVES_AN_EVENT)
                stand.wait(chance.uniform(*PAUSE_SECONDS))
            figures["moves"] += MOVES_AN_EVENT
            figures["late inserts"] += clickhouse.matched(fault)
    clickhouse.refuse_kills(False)
    findings, _ = settle(stand, jobs)
    return Played(findings=findings, figures={**wire_figures(stand), **figures})


KIND = Kind(
    name="replicas",
    says="two services over one ClickHouse, writers that move between them, late inserts, SIGKILL of either",
    share=0.2,
    stand=open_stand,
    play=play,
)
