"""Lists of labels of class maps: a number, a name, perhaps a colour each. Every tool has a file of its own for them.

labelmap.txt                name:r,g,b:parts:actions              Pascal VOC as CVAT and Datumaro write it
label_colors.txt            r g b<tab>name                        CamVid
class_dict.csv              name,r,g,b                            CamVid, as it is handed on
_classes.csv                Pixel Value, Class                    annotation hosts
objectInfo150.txt           Idx, Ratio, Train, Val, Stuff, Name   ADE20K; number 0 is nobody's
classes.txt, labels.txt, …  a name a line, numbered from 0
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from services.conversion.formats.colors import Color

BLACK: Color = (0, 0, 0)
VOID_NUMBERS = frozenset({255, 65_535})
"""What tools write where nothing is to be learned, unless a label has that number."""
VOID_NAMES = frozenset(
    {"void", "unlabeled", "unlabelled", "ignore", "ignored", "_ignore_", "__ignore__", "background_void"}
)
"""Names, in lower case, of what is to be ignored."""
CITYSCAPES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road",
    "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""By their numbers in `…_labelIds.png`; the first seven are not evaluated."""
CITYSCAPES_IGNORED = frozenset(CITYSCAPES[:7])
PASCAL_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""By their numbers in SegmentationClass/; no file of VOC lists them."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label of a list. `number` is what a map of numbers writes for it."""

    number: int
    name: str
    color: Color | None = None

    @property
    def void(self) -> bool:
        """Whether its pixels are to be ignored: what is called so, and has a colour of its own, is a class."""
        return self.name.lower() in VOID_NAMES and self.color in (None, BLACK)


def read_labels(path: str, text: str) -> list[Label]:
    """The labels of a list, in order; empty where the file is none of those above."""
    reader = _READERS.get(PurePosixPath(path).name.lower())
    return reader(text) if reader is not None else []


def known_lists() -> str:
    """What lists of labels are called, for a message."""
    return ", ".join(sorted(_READERS))


def is_list(path: str) -> bool:
    """Whether a file is called as a list of labels is."""
    return PurePosixPath(path).name.lower() in _READERS


def cityscapes() -> list[Label]:
    """Those of Cityscapes, of which it has no file."""
    return [Label(number=number, name=name) for number, name in enumerate(CITYSCAPES)]


def pascal_voc() -> list[Label]:
    """Those of Pascal VOC, of which it has no file, with its colours: the bits of the number, spread."""
    return [Label(number=number, name=name, color=voc_color(number)) for number, name in enumerate(PASCAL_VOC)]


def voc_color(number: int) -> Color:
    """The colour of a number in VOC's palette: bit 3k + c of it is bit 7 - k of channel c."""
    parts = [sum((number >> (3 * k + c) & 1) << (7 - k) for k in range(8)) for c in range(3)]
    return parts[0], parts[1], parts[2]


def _labelmap(text: str) -> list[Label]:
    found: list[Label] = []
    for line in _lines(text, comment="#"):
        name, color, *_ = line.rsplit(":", 3) if line.count(":") > 2 else [*line.split(":"), ""]
        found.append(Label(number=len(found), name=name, color=_color(color.split(","))))
    return found


def _label_colors(text: str) -> list[Label]:
    found: list[Label] = []
    for line in _lines(text):
        parts = line.split(None, 3)
        color = _color(parts[:3]) if len(parts) == 4 else None
        if color is not None:
            found.append(Label(number=len(found), name=parts[3].strip(), color=color))
    return found


def _class_dict(text: str) -> list[Label]:
    found: list[Label] = []
    for line in _lines(text):
        *name, red, green, blue = line.split(",") if line.count(",") >= 3 else (line, "", "", "")
        color = _color([red, green, blue])
        if color is not None:
            found.append(Label(number=len(found), name=",".join(name).strip(), color=color))
    return found


def _numbered(text: str) -> list[Label]:
    found: list[Label] = []
    for line in _lines(text):
        number, comma, name = line.partition(",")
        if comma and number.strip().isdigit() and len(number.strip()) < 6:
            found.append(Label(number=int(number), name=name.strip()))
    return found


def _object_info(text: str) -> list[Label]:
    found: list[Label] = []
    for line in _lines(text):
        parts = re.split(r"\t+|\s{2,}", line.strip())
        if parts[0].isdigit() and len(parts) > 1:
            found.append(Label(number=int(parts[0]), name=parts[-1].split(",")[0].split(";")[0].strip()))
    return found


def _names(text: str) -> list[Label]:
    return [Label(number=number, name=line.strip()) for number, line in enumerate(_lines(text))]


_READERS: Mapping[str, Callable[[str], list[Label]]] = {
    "labelmap.txt": _labelmap,
    "label_colors.txt": _label_colors,
    "class_dict.csv": _class_dict,
    "_classes.csv": _numbered,
    "objectinfo150.txt": _object_info,
    "classes.txt": _names,
    "labels.txt": _names,
    "label_names.txt": _names,
    "class_names.txt": _names,
}


def _lines(text: str, *, comment: str = "") -> list[str]:
    lines = (line for line in text.splitlines() if line.strip())
    return [line for line in lines if not (comment and line.startswith(comment))]


def _color(parts: list[str]) -> Color | None:
    numbers = [int(part) for part in parts if part.strip().isdigit() and len(part.strip()) < 4]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 and max(numbers) < 256 else None
