"""Which job may go to which runner. Pure functions of needs and capabilities; the order of the queue is the store's."""

from __future__ import annotations

from functools import cached_property, lru_cache

from msgspec import Struct

MIB = 2**20
GIB = 2**30
KINDS_REMEMBERED = 1_024
"""Of needs, as they are read again and again."""


class Gpu(Struct, frozen=True, kw_only=True):
    """One GPU."""

    model: str
    memory_bytes: int


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a runner has and can do. Tasks are names of the proto's enum without their prefix.

    `extras`: optional parts of sihlai that are installed. `problem`: why it can train nothing now; empty while it can.
    """

    gpus: tuple[Gpu, ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    tasks: frozenset[str] = frozenset()
    extras: frozenset[str] = frozenset()
    software_version: str = ""
    host: str = ""
    problem: str = ""


class Needs(Struct, frozen=True, kw_only=True, dict=True):
    """What a job asks of a runner. `avoided`: ids of runners that it keeps away from while another could serve it."""

    gpus: int = 0
    gpu_memory_bytes: int = 0
    tasks: frozenset[str] = frozenset()
    extras: frozenset[str] = frozenset()
    avoided: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The needs as a word: the same needs have the same one. The queue is indexed by it.

        Memory is told in whole MiB, and never more than was asked for: a card of 23.99 GiB serves who asks for 23.5.
        """
        extras = f"/{','.join(sorted(self.extras))}" if self.extras else ""
        avoided = f"!{','.join(self.avoided)}" if self.avoided else ""
        return f"{self.gpus}/{self.gpu_memory_bytes // MIB}/{','.join(sorted(self.tasks))}{extras}{avoided}"


@lru_cache(maxsize=KINDS_REMEMBERED)
def needs_from_key(key: str) -> Needs:
    """The needs that have this key; memory comes back in whole MiB."""
    asked, _, avoided = key.partition("!")
    gpus, memory_mib, tasks, *extras = asked.split("/")
    return Needs(
        gpus=int(gpus),
        gpu_memory_bytes=int(memory_mib) * MIB,
        tasks=frozenset(tasks.split(",")) if tasks else frozenset(),
        extras=frozenset(extras[0].split(",")) if extras else frozenset(),
        avoided=tuple(avoided.split(",")) if avoided else (),
    )


def fits(needs: Needs, capabilities: Capabilities) -> bool:
    """Whether the runner can serve the job."""
    return not lacking(needs, capabilities)


def lacking(needs: Needs, capabilities: Capabilities) -> list[str]:
    """What the runner lacks for the job, in words; empty where it can serve it."""
    missing = []
    large = [gpu for gpu in capabilities.gpus if gpu.memory_bytes >= needs.gpu_memory_bytes]
    if len(capabilities.gpus) < needs.gpus:
        missing.append(f"{needs.gpus} GPUs, it has {len(capabilities.gpus)}")
    elif needs.gpus and len(large) < needs.gpus:
        wanted = f"{needs.gpu_memory_bytes / GIB:g} GiB"
        missing.append(f"{needs.gpus} GPUs with {wanted} of memory, it has {len(large)}")
    if tasks := needs.tasks - capabilities.tasks:
        missing.append("a head for " + ", ".join(sorted(tasks)).lower().replace("_", " "))
    if extras := needs.extras - capabilities.extras:
        missing.append(" and ".join(f"{extra} (install sihlai[{extra}] there)" for extra in sorted(extras)))
    return missing


def size(capabilities: Capabilities) -> tuple[int, int]:
    """How much a runner has: of several that fit the smallest is taken, so that the larger ones stay free."""
    return len(capabilities.gpus), sum(gpu.memory_bytes for gpu in capabilities.gpus)
