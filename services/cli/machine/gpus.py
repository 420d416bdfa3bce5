"""The GPUs of this machine, as `sihlai up` divides them among its runners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pynvml

from services.cli.error import CommandError

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"


class TooFewGpusError(CommandError):
    """Not every runner can have a GPU; the message is for a person."""


def gpus_to_use(environ: Mapping[str, str]) -> list[str]:
    """What CUDA may be told to use: what the environment allows, else every GPU by its uuid; none without a driver."""
    allowed = environ.get(VISIBLE_VARIABLE)
    if allowed is not None:
        return [word.strip() for word in allowed.split(",") if word.strip() not in ("", "-1", "NoDevFiles")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def divided(gpus: Sequence[str], runners: int) -> list[list[str]]:
    """The GPUs of each runner: no GPU has two, and the first ones get what does not divide."""
    each, more = divmod(len(gpus), max(runners, 1))
    shares: list[list[str]] = []
    left = list(gpus)
    for index in range(runners):
        count = each + (index < more)
        shares.append(left[:count])
        left = left[count:]
    return shares


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
