"""Which images of a training dataset an evaluation needs: those that a training would have set aside to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runner.agent.files.download import ANNOTATIONS, METADATA
from services.chassis.errors import FailedPrecondition, Reason
from services.split.choice import HeadAnnotations, validation_names


class _Metadata(msgspec.Struct, frozen=True, kw_only=True):
    task: str


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """Names of images, and local paths of the maps that annotate them."""

    images: frozenset[str]
    maps: frozenset[Path]


def set_aside(heads: Sequence[Path], *, share: float, seed: int) -> SetAside:
    """The choice that a trainer would make, out of the heads' folders, where metadata and annotations are already.

    Their annotations then know these images alone. Slow: for a thread.
    """
    found = [
        HeadAnnotations(
            task=_decoded(folder / METADATA, _Metadata).task,
            annotations=_decoded(folder / ANNOTATIONS, dict[str, Any]),
        )
        for folder in heads
    ]
    names = validation_names(found, share, seed)
    for folder, head in zip(heads, found, strict=True):
        kept = {name: entry for name, entry in head.annotations.items() if name in names}
        (folder / ANNOTATIONS).write_bytes(msgspec.json.encode(kept))
    maps = {
        folder / entry["map"]
        for folder, head in zip(heads, found, strict=True)
        for name, entry in head.annotations.items()
        if name in names and isinstance(entry, dict) and isinstance(entry.get("map"), str)
    }
    return SetAside(images=names, maps=frozenset(maps))


def _decoded(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        message = f"{path.name} of the converted dataset is not what the runner reads: {error}"
        raise FailedPrecondition(Reason.DATASET_INVALID, message) from error
