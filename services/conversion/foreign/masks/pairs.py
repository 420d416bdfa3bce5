"""Which class map belongs to which image: both lie in folders of their own, or side by side, and share a stem.

What tools add to the stems is taken off: `a_gtFine_labelIds.png` and `a_leftImg8bit.png`, `a_L.png`, `a_mask.png`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from services.conversion.foreign.image_names import is_image

MAP_ENDS = ("_gtFine_labelIds", "_gtCoarse_labelIds", "_labelIds", "_mask", "_L", "_label", "_labels", "_seg", "_gt")
"""At the ends of maps' stems."""
IMAGE_ENDS = ("_leftImg8bit",)
NO_MAPS = (
    "_gtFine_color", "_gtFine_instanceIds", "_gtFine_labelTrainIds", "_gtCoarse_color", "_gtCoarse_instanceIds",
    "_gtCoarse_labelTrainIds", "_instanceIds", "_color",
)  # fmt: skip
"""At the ends of stems of pictures that stand beside maps."""
MAP_FOLDERS = (
    "segmentationclass", "gtfine", "gtcoarse", "annotations", "masks", "mask", "labels", "label",
    "labeledapproved_full",
    "segmentation", "gt", "annot", "trainannot", "valannot", "testannot", "train_labels", "val_labels", "test_labels",
    "ann_dir", "segmentationclassraw",
)  # fmt: skip
"""Folders of maps, in lower case."""
PASSED_OVER = ("segmentationobject",)


def is_map(path: str) -> bool:
    """Whether a file is a class map, by its name and folders."""
    file = PurePosixPath(path)
    if file.suffix.lower() != ".png" or any(file.stem.endswith(end) for end in NO_MAPS):
        return False
    folders = [part.lower() for part in file.parts[:-1]]
    if any(folder in PASSED_OVER for folder in folders):
        return False
    return any(folder in MAP_FOLDERS for folder in folders) or any(file.stem.endswith(end) for end in MAP_ENDS[:4])


def is_picture(path: str) -> bool:
    """Whether a file is an image to learn from, and no map or what stands beside one."""
    file = PurePosixPath(path)
    folders = [part.lower() for part in file.parts[:-1]]
    beside = any(folder in (*MAP_FOLDERS, *PASSED_OVER) for folder in folders)
    return is_image(path) and not beside and not is_map(path) and not any(file.stem.endswith(end) for end in NO_MAPS)


def image_key(path: str) -> str:
    """What an image's name shares with its map's."""
    return _without(PurePosixPath(path).stem, IMAGE_ENDS)


def map_key(path: str) -> str:
    """What a map's name shares with its image's."""
    return _without(PurePosixPath(path).stem, MAP_ENDS)


def pair(images: Sequence[str], maps: Sequence[str]) -> dict[str, str]:
    """The map of each image. Of several with the same key that one which shares more folders with the image."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for path in maps:
        by_key[map_key(path)].append(path)
        if map_key(path) != PurePosixPath(path).stem:  # an image may itself be called `x_L`
            by_key[PurePosixPath(path).stem].append(path)
    found = {}
    for image in images:
        candidates = by_key.get(image_key(image), [])
        if candidates:
            folders = set(PurePosixPath(image).parts[:-1])
            found[image] = max(candidates, key=lambda path: len(folders & set(PurePosixPath(path).parts[:-1])))
    return found


def _without(stem: str, ends: Sequence[str]) -> str:
    end = next((end for end in ends if stem.endswith(end) and stem != end), "")
    return stem.removesuffix(end)
