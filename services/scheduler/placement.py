"""Which job may go to which runner. Pure functions of needs and capabilities; the order of the queue is the store's."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    model: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a runner has and can do. Tasks are names of the proto's enum without their prefix."""

    gpus: tuple[Gpu, ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    tasks: frozenset[str] = frozenset()
    software_version: str = ""
    host: str = ""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a job asks of a runner."""

    gpus: int = 0
    gpu_memory_bytes: int = 0
    tasks: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """The needs as a word: the same needs have the same one. The queue is indexed by it.

        Memory is rounded up to whole GiB, so that jobs cannot make the queue wide by asking for odd amounts.
        """
        return f"{self.gpus}/{-(-self.gpu_memory_bytes // GIB)}/{','.join(sorted(self.tasks))}"


def needs_from_key(key: str) -> Needs:
    """The needs that have this key; memory comes back in whole GiB."""
    gpus, memory_gib, tasks = key.split("/")
    return Needs(
        gpus=int(gpus),
        gpu_memory_bytes=int(memory_gib) * GIB,
        tasks=frozenset(tasks.split(",")) if tasks else frozenset(),
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
    return missing


def size(capabilities: Capabilities) -> tuple[int, int]:
    """How much a runner has: of several that fit the smallest is taken, so that the larger ones stay free."""
    return len(capabilities.gpus), sum(gpu.memory_bytes for gpu in capabilities.gpus)
