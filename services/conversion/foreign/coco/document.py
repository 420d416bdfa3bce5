"""COCO's JSON: one document with images, categories and annotations.

A document of a gigabyte is normal, so only what is needed to find an image's annotations is made into numbers; the
rest (polygons, boxes) stays text until the image's turn comes. Text that is not looked at here is whole JSON all the
same: the parser has been over it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

import msgspec

from services.chassis.errors import InvalidArgument, Violation
from services.conversion.finding import Place, Report
from services.conversion.foreign.format import ForeignError, ForeignImage
from services.conversion.foreign.image_names import (
    is_image,
    locate,
    missing_image_message,
    native_images,
    report_passed_over,
)
from services.conversion.formats.names import NAMES_MAX, RESERVED_NAMES, is_name
from services.conversion.index import ImageEntry

NOTHING = msgspec.Raw(b"")
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""What Python's json writes for numbers that are none, which is no JSON."""
SHOWN_BYTES = 40
"""On each side of what is no JSON."""
_TEXT_OR_WORD = re.compile(rb'"(?:[^"\\]|\\.)*+"|(-?Infinity|NaN)', re.DOTALL)
ID_MAX = 2**63 - 1
KINDS = {"instances": "instances", "person_keypoints": "keypoints", "keypoints": "keypoints", "panoptic": "panoptic"}
"""How COCO's files of each kind begin; any other name may hold any kind."""
OTHER_KINDS = ("captions", "stuff", "image_info", "images_info")


class CocoImage(msgspec.Struct, gc=False):
    """One of `images`. LVIS has no `file_name`: then the end of `coco_url` is it. Some number images by names."""

    id: int | str
    file_name: str = ""
    width: int = 0
    height: int = 0
    coco_url: str | None = None


class CocoCategory(msgspec.Struct, gc=False):
    """One of `categories`."""

    id: int
    name: str
    isthing: Any = None
    color: Any = None
    keypoints: Any = None
    supercategory: Any = None
    skeleton: msgspec.Raw = NOTHING

    @property
    def rgb(self) -> tuple[int, int, int] | None:
        """Its colour: three numbers, or `#rrggbb` as annotation hosts write it."""
        found = self.color
        if isinstance(found, str) and re.fullmatch(r"#[0-9A-Fa-f]{6}", found):
            return int(found[1:3], 16), int(found[3:5], 16), int(found[5:], 16)
        if not isinstance(found, list) or len(found) != 3:
            return None
        red, green, blue = found
        return (red, green, blue) if all(type(part) is int and 0 <= part <= 255 for part in found) else None

    @property
    def points(self) -> list[str]:
        """The names of its keypoints; none where it has none, or something else."""
        found = self.keypoints
        return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else []


class CocoAnnotation(msgspec.Struct, gc=False):
    """One of `annotations` for instances and keypoints. Nobody has looked into what is Raw or Any.

    Any takes less memory than Raw where the value is one number.
    """

    image_id: int | str
    category_id: int
    id: int | str | None = None
    segmentation: msgspec.Raw = NOTHING
    bbox: msgspec.Raw = NOTHING
    keypoints: msgspec.Raw = NOTHING
    area: Any = None
    iscrowd: Any = None
    ignore: Any = None


class CocoPanopticAnnotation(msgspec.Struct, gc=False):
    """One of `annotations` for panoptic: an image's map."""

    image_id: int | str
    file_name: str
    segments_info: msgspec.Raw = NOTHING


Annotation = TypeVar("Annotation", CocoAnnotation, CocoPanopticAnnotation)


class CocoDocument(msgspec.Struct, Generic[Annotation], gc=False):
    """A whole file."""

    images: list[CocoImage]
    annotations: list[Annotation]
    categories: list[CocoCategory]


_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    "instances": msgspec.json.Decoder(CocoDocument[CocoAnnotation]),
    "keypoints": msgspec.json.Decoder(CocoDocument[CocoAnnotation]),
    "panoptic": msgspec.json.Decoder(CocoDocument[CocoPanopticAnnotation]),
}


def read_coco(content: bytes, kind: str, path: str) -> CocoDocument[Any]:
    """The document. Raises ForeignError; what is wrong with single annotations is found later."""
    place = Place(file=path)
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    try:
        document: CocoDocument[Any] = _decode(content, kind)
    except msgspec.ValidationError as error:
        raise ForeignError("bad_value", f"the file is no COCO {kind}: {error}", place) from error
    except msgspec.DecodeError as error:
        found = re.search(r"\(byte (\d+)\)", str(error))
        byte = int(found[1]) if found else 0
        line = content.count(b"\n", 0, byte) + 1 if found else 0
        value = content[max(0, byte - SHOWN_BYTES) : byte + SHOWN_BYTES].decode("utf-8", "replace") if found else ""
        raise ForeignError(
            "syntax", f"the file is not JSON: {error}", Place(file=path, line=line), value=value
        ) from error
    except (RecursionError, UnicodeDecodeError) as error:
        problem = "is nested too deep" if isinstance(error, RecursionError) else "is not UTF-8: save it as UTF-8"
        raise ForeignError("syntax", f"the file {problem}", place) from error
    for image in document.images:
        if not image.file_name and image.coco_url:
            image.file_name = "/".join(image.coco_url.split("?")[0].rsplit("/", 2)[-2:])
    return document


def _decode(content: bytes, kind: str) -> CocoDocument[Any]:
    """The document; numbers that are none, as Python writes them, become texts, so that they are found where they are.

    Raises what msgspec raises.
    """
    try:
        document: CocoDocument[Any] = _DECODERS[kind].decode(content)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = _TEXT_OR_WORD.sub(lambda found: found[0] if found[1] is None else b'"%s"' % found[1], content)
        if mended == content:
            raise
        document = _DECODERS[kind].decode(mended)
    return document


def choose_document(paths: Mapping[str, int], kind: str, split: str) -> str:
    """The JSON file of a kind and split. Raises ForeignError where there is none, InvalidArgument for the split."""
    found = [path for path in paths if path.lower().endswith(".json") and _may_hold(path, kind)]
    named = [path for path in found if KINDS.get(_prefix(path)) == kind]
    if kind == "panoptic":
        folders = {str(PurePosixPath(path).parent) for path in paths if path.lower().endswith(".png")}
        named = [path for path in named if path[: -len(".json")] in folders] or named
    found = named or found
    if split:
        exact = [path for path in found if PurePosixPath(path).stem == split]
        found_in_split = exact or [path for path in found if split in _words(path)]
        if len(found_in_split) != 1:
            problem = "none of them" if not found_in_split else f"{len(found_in_split)} of them"
            raise _wrong_split(f"is {split!r}, which is in the name of {problem}", found)
        return found_in_split[0]
    if not found:
        message = f"there is no JSON file of COCO {kind}, such as annotations/{kind}_train.json"
        raise ForeignError("missing_file", message, Place(file="annotations/"))
    if len(found) > 1:
        raise _wrong_split("is empty, but the source has several", found)
    return found[0]


def read_categories(document: CocoDocument[Any], path: str, report: Report) -> dict[int, str]:
    """The names by id, in the order of the file. What is repeated cannot be understood."""
    place = Place(file=path)
    if not document.categories or len(document.categories) > NAMES_MAX:
        message = f"`categories` lists {len(document.categories)} categories, but 1 to {NAMES_MAX} may be"
        raise ForeignError("empty_vocabulary", message, place)
    _leave_out_root(document, place, report)
    names: dict[int, str] = {}
    for each in document.categories:
        if not is_name(each.name) or each.name in RESERVED_NAMES or not 0 <= each.id <= ID_MAX:
            raise ForeignError("bad_name", "a category's name or id cannot be used: rename it", place, value=each.name)
        if each.id in names:
            message = f"the category id {each.id} stands twice: {names[each.id]!r} and {each.name!r}; issue another"
            raise ForeignError("repeated_category", message, place, value=str(each.id))
        names[each.id] = each.name
    for name, count in Counter(names.values()).items():
        if count > 1:
            message = f"{count} categories have this name: rename them, natively a category is its name"
            raise ForeignError("repeated_category", message, place, value=name)
    _report_odd_keys(document.categories, place, report)
    for what in ("supercategory", "skeleton"):
        count = sum(bool(getattr(each, what)) and getattr(each, what) is not NOTHING for each in document.categories)
        if count:
            message = f"the {what} of {count} categories is left out: the native format has none"
            report.warn("not_kept", message, place, value=what)
    return names


def _leave_out_root(document: CocoDocument[Any], place: Place, report: Report) -> None:
    """Annotation hosts write their project as category 0, above all others, which nothing is annotated as."""
    root = next((each for each in document.categories if each.id == 0), None)
    others = [each for each in document.categories if each is not root]
    if root is None or not others or root.supercategory not in (None, "", "none"):
        return
    if any(each.supercategory != root.name for each in others):
        return
    if any(getattr(each, "category_id", None) == 0 for each in document.annotations):
        return
    document.categories = others
    message = (
        f"the category 0, {root.name!r}, is what all others are kinds of, and no annotation has it: it is left out"
    )
    report.warn("not_kept", message, place, value=root.name)


def _report_odd_keys(categories: Sequence[CocoCategory], place: Place, report: Report) -> None:
    """Keys that hold what they hold in no other file are passed over: nobody here needs them."""
    good: Mapping[str, Callable[[CocoCategory], bool]] = {
        "isthing": lambda each: each.isthing in (None, 0, 1),
        "color": lambda each: each.color is None or each.rgb is not None,
        "keypoints": lambda each: each.keypoints is None or each.points == each.keypoints,
        "supercategory": lambda each: each.supercategory is None or isinstance(each.supercategory, str),
    }
    for what, is_good in good.items():
        odd = [each for each in categories if not is_good(each)]
        if odd:
            message = f"the {what} of {len(odd)} categories is not what COCO has there: it is passed over"
            report.warn("bad_value", message, place, value=f"{odd[0].name}: {getattr(odd[0], what)}")


def category_ids(names: Mapping[int, str]) -> Mapping[str, Any]:
    """The metadata key that keeps ids which are not simply 1, 2, 3 in order."""
    plain = list(names) == list(range(1, len(names) + 1))
    return {} if plain else {"category_ids": {name: number for number, name in names.items()}}


@dataclass(frozen=True, kw_only=True)
class CocoContents(Generic[Annotation]):
    """Images that are there, and the annotations of each by the image's native name."""

    path: str
    images: tuple[ForeignImage, ...]
    by_name: Mapping[str, CocoImage]
    annotations: Mapping[int | str, Sequence[Annotation]]

    def of(self, image: ImageEntry) -> tuple[CocoImage, Sequence[Annotation], Place]:
        """What is said of an image."""
        about = self.by_name[image.name]
        return about, self.annotations.get(about.id, ()), Place(file=self.path, image=image.name)


def read_contents(
    document: CocoDocument[Annotation], path: str, paths: Mapping[str, int], report: Report
) -> CocoContents[Annotation]:
    """Bring images and annotations together; reports repeated ids, missing images, annotations without an image."""
    place = Place(file=path)
    by_id: dict[int | str, CocoImage] = {}
    repeated: set[int | str] = set()
    files: Counter[str] = Counter()
    for image in document.images:
        if image.id in by_id:
            repeated.add(image.id)
        by_id[image.id] = image
        files[image.file_name] += 1
    annotations = by_image(document.annotations)
    for number in sorted(repeated, key=str):
        message = f"the image id {number} stands more than once, so that its annotations belong to none"
        report.error("repeated_image", message, place, value=str(number), annotations=len(annotations.pop(number, ())))
        del by_id[number]
    for image in [each for each in by_id.values() if files[each.file_name] > 1]:
        message = f"the image is listed {files[image.file_name]} times: list it once, with all of its annotations"
        at = Place(file=path, image=image.file_name)
        report.error("repeated_image", message, at, value=str(image.id), annotations=len(annotations.pop(image.id, ())))
        del by_id[image.id]
    for number in sorted(annotations.keys() - by_id.keys() - repeated, key=str):
        count = len(annotations[number])
        message = f"{count} annotations have the image_id {number}, which no image has: remove them, or add the image"
        report.error("annotation_without_image", message, place, value=str(number), annotations=count)
    found = _find_images(by_id, annotations, path, paths, report)
    images = native_images(found.values())
    names = {image.path: image.name for image in images}
    by_name = {names[found[each.file_name]]: each for each in by_id.values() if each.file_name in found}
    return CocoContents(path=path, images=images, by_name=by_name, annotations=annotations)


def by_image(annotations: Sequence[Annotation]) -> dict[int | str, list[Annotation]]:
    """The annotations of each image id, in their order."""
    found: dict[int | str, list[Annotation]] = defaultdict(list)
    for each in annotations:
        found[each.image_id].append(each)
    return dict(found)


def report_repeated_ids(annotations: Sequence[CocoAnnotation], path: str, report: Report) -> None:
    """Annotations of one id: natively they have none, so nothing is lost."""
    ids = [each.id for each in annotations if each.id is not None]
    if len(set(ids)) < len(ids):
        number, count = Counter(ids).most_common(1)[0]
        message = f"{len(ids) - len(set(ids))} annotations repeat the id of another; {number} stands {count} times"
        report.warn("repeated_id", message, Place(file=path), value=str(number))


def _find_images(
    by_id: Mapping[int | str, CocoImage],
    annotations: Mapping[int | str, Sequence[Any]],
    path: str,
    paths: Mapping[str, int],
    report: Report,
) -> dict[str, str]:
    report_passed_over(paths, report)
    images = {each: size for each, size in paths.items() if is_image(each)}
    own = path.rpartition("/")[0]
    found = locate([each.file_name for each in by_id.values()], images, preferred=f"{own}/" if own else "")
    for each in by_id.values():
        if each.file_name not in found:
            count = len(annotations.get(each.id, ()))
            place = Place(file=path, image=each.file_name)
            message = missing_image_message(each.file_name, paths)
            report.error("missing_image", message, place, value=each.file_name, annotations=count)
    if not found:
        raise ForeignError("missing_image", "none of the images that it lists is among the files", Place(file=path))
    return found


def _prefix(path: str) -> str:
    stem = PurePosixPath(path).stem.lower()
    return next((each for each in (*KINDS, *OTHER_KINDS) if stem.startswith(each)), "")


def _may_hold(path: str, kind: str) -> bool:
    prefix = _prefix(path)
    return not prefix or KINDS.get(prefix) == kind


def _words(path: str) -> set[str]:
    """`annotations/instances_train2017.json` has the words instances, train, 2017 and train2017."""
    parts = re.split(r"[^A-Za-z0-9]+", path.rsplit(".", 1)[0])
    return {*parts, *(word for part in parts for word in re.findall(r"[A-Za-z]+|[0-9]+", part))}


def _wrong_split(found: str, paths: Sequence[str]) -> InvalidArgument:
    names = ", ".join(sorted(paths)[:20]) or "no file at all"
    return InvalidArgument([Violation(field="split", description=f"{found}; there are: {names}")])
