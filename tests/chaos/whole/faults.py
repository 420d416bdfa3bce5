"""What is done to an installation: one thing at a time, for a while, and then it is mended."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.whole.history import History
from tests.chaos.whole.stand import LEASE_SECONDS, Stand
from tests.exchange import exchange

SERVERS = ("scheduler", "metrics", "conversion", "nats")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a fault has to do with."""

    stand: Stand
    history: History
    random: random.Random
    wait: Callable[[float], None]

    def runner(self) -> str:
        return self.random.choice(self.stand.runners)

    @contextlib.contextmanager
    def disturbing(self, runner: str) -> Iterator[None]:
        """While this goes on, and for a while after it, the runner's attempt may rightly be lost."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.history.disturb(runner, began, time.monotonic())


Fault = Callable[[Scene], None]


def kill_server(scene: Scene) -> None:
    name = scene.random.choice(SERVERS)
    _kill(scene, name)


def kill_scheduler_twice(scene: Scene) -> None:
    """Once more as soon as it serves: whatever it does first is interrupted too."""
    for _ in range(2):
        _kill(scene, "scheduler")


def kill_all_servers(scene: Scene) -> None:
    for name in SERVERS:
        scene.stand.programs[name].kill()
    scene.wait(scene.random.uniform(0, 2))
    for name in ("nats", "conversion", "scheduler", "metrics"):
        _start(scene, name)


def kill_runner(scene: Scene) -> None:
    name = scene.runner()
    with scene.disturbing(name):
        _kill(scene, name)


def restart_runner(scene: Scene) -> None:
    """As an operator does: it is drained, hands back what it has, and begins anew."""
    name = scene.runner()
    program = scene.stand.programs[name]
    with scene.disturbing(name):
        program.signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while program.running and time.monotonic() < deadline:
            scene.wait(0.05)
        program.kill()
        program.start()


def pause_server(scene: Scene) -> None:
    """Longer than a lease: whoever was away for so long has no right to judge who is alive."""
    _pause(scene, scene.random.choice(SERVERS), scene.random.uniform(0.5, 2 * LEASE_SECONDS))


def pause_runner(scene: Scene) -> None:
    name = scene.runner()
    with scene.disturbing(name):
        _pause(scene, name, scene.random.uniform(0.5, 2 * LEASE_SECONDS))


def cut_runner(scene: Scene) -> None:
    name = scene.runner()
    with scene.disturbing(name):
        scene.stand.links[name].cut()
        scene.wait(scene.random.uniform(0.1, 1.5 * LEASE_SECONDS))
        scene.stand.links[name].mend()


def hold_runner(scene: Scene) -> None:
    """The connection stays open and nothing comes through."""
    name = scene.runner()
    with scene.disturbing(name):
        scene.stand.links[name].hold()
        scene.wait(scene.random.uniform(1, 1.5 * LEASE_SECONDS))
        scene.stand.links[name].mend()


def slow_runner(scene: Scene) -> None:
    name = scene.runner()
    with scene.disturbing(name):
        scene.stand.links[name].slow(scene.random.uniform(0.05, 0.4))
        scene.wait(scene.random.uniform(2, 5))
        scene.stand.links[name].mend()


def break_link(scene: Scene) -> None:
    """Of the bus or of metrics: nothing healthy may end for it."""
    link = scene.stand.links[scene.random.choice(("nats", "metrics"))]
    scene.random.choice((link.cut, link.hold))()
    scene.wait(scene.random.uniform(1, 6))
    link.mend()


def step_clock(scene: Scene) -> None:
    name = scene.random.choice(("scheduler", "scheduler", "metrics", scene.runner()))
    seconds = scene.random.choice((-1, 1)) * scene.random.uniform(2, 90)
    scene.stand.programs[name].world.change(clock_seconds=seconds)
    scene.wait(scene.random.uniform(1, LEASE_SECONDS))
    scene.stand.programs[name].world.change()


def slow_disk(scene: Scene) -> None:
    name = scene.random.choice(("scheduler", "metrics", scene.runner()))
    scene.stand.programs[name].world.change(sync_seconds=scene.random.uniform(0.05, 0.6))
    scene.wait(scene.random.uniform(2, 5))
    scene.stand.programs[name].world.change()


def full_disk(scene: Scene) -> None:
    """The scheduler's or a runner's. Metrics' engine is known to lose rows then: README, What survives."""
    name = scene.random.choice(("scheduler", scene.runner()))
    scene.stand.programs[name].world.change(disk_full=True)
    scene.wait(scene.random.uniform(0.5, 4))
    scene.stand.programs[name].world.change()


def store_away(scene: Scene) -> None:
    """A file where the folder of all checkpoints should be."""
    store = scene.stand.folder / "checkpoints"
    away = store.with_name("checkpoints.away")
    store.mkdir(exist_ok=True)
    away.write_text("not mounted")
    exchange(store, away)
    scene.wait(scene.random.uniform(1, 5))
    exchange(store, away)
    away.unlink()


def kill_postgresql(scene: Scene) -> None:
    if scene.stand.postgresql is None:
        _kill(scene, "scheduler")
        return
    scene.stand.postgresql.kill()
    scene.wait(scene.random.uniform(0, 3))
    scene.stand.postgresql.start()


FAULTS: Sequence[Fault] = (
    kill_server,
    kill_scheduler_twice,
    kill_all_servers,
    kill_runner,
    restart_runner,
    pause_server,
    pause_runner,
    cut_runner,
    hold_runner,
    slow_runner,
    break_link,
    step_clock,
    slow_disk,
    full_disk,
    store_away,
    kill_postgresql,
)


def mend(stand: Stand) -> None:
    """All faults are over: everything runs, is connected, and believes what is true."""
    if stand.postgresql is not None:
        stand.postgresql.start()
    for link in stand.links.values():
        link.mend()
    for program in stand.programs.values():
        program.world.change()
        program.signal(signal.SIGCONT)
        if not program.running:
            program.start()
            program.wait_serving()


def _kill(scene: Scene, name: str) -> None:
    scene.stand.programs[name].kill()
    scene.wait(scene.random.uniform(0, 2))
    _start(scene, name)


def _start(scene: Scene, name: str) -> None:
    program = scene.stand.programs[name]
    (scene.stand.folder / f"{name}.address").unlink(missing_ok=True)
    program.start()
    program.wait_serving()


def _pause(scene: Scene, name: str, seconds: float) -> None:
    program = scene.stand.programs[name]
    program.signal(signal.SIGSTOP)
    scene.wait(seconds)
    program.signal(signal.SIGCONT)
