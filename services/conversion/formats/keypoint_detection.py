"""Keypoint detection: objects with named points."""

# ruff: noqa: D102 — the Protocol says what each method does.

from __future__ import annotations

import difflib
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from services.conversion.file.document import List, Mapping, Value, shown
from services.conversion.finding import Place, Report
from services.conversion.formats.bounding_box import (
    Bbox,
    bounds,
    check_fractions,
    check_overhang,
    overhangs,
    read_bbox,
    write_bbox,
)
from services.conversion.formats.format import Json
from services.conversion.formats.names import RESERVED_NAMES, Names, read_names
from services.conversion.formats.number import NumberError, Point, read_number, read_point, shown_numbers, written
from services.conversion.formats.object_list import RawObject, read_objects, written_flags
from services.conversion.index import ImageSize
from services.conversion.task import Task


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """The points that an object may have. `sigmas`, one a point, say how exactly people place it.

    `flip_pairs` are the points that change names in a mirror, such as a left and a right hand.
    """

    names: Names
    sigmas: tuple[float, ...]
    flip_pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object. A point that is left out is not there; None was written as null and stays so."""

    points: AnyMapping[str, Point | None]
    bbox: Bbox | None = None
    area: float | None = None
    crowd: bool = False
    ignore: bool = False

    @property
    def places(self) -> tuple[Point, ...]:
        """The points that are there, occluded ones included."""
        return tuple(point for point in self.points.values() if point is not None)


Instances: TypeAlias = tuple[Instance, ...]
"""Of one image; the empty tuple says that no object is there."""


class KeypointDetection:
    """An annotation is a tuple of instances."""

    task = Task.KEYPOINT_DETECTION
    annotated = True
    optional = False
    keys = ("keypoints", "sigmas", "flip_pairs")
    map_suffixes: Sequence[str] = ()

    def read_vocabulary(self, metadata: Mapping, place: Place, report: Report) -> Keypoints:
        names = read_names(metadata, "keypoints", place, report, reserved=RESERVED_NAMES)
        sigmas = _read_sigmas(metadata, len(names.names), place, report)
        return Keypoints(names=names, sigmas=sigmas, flip_pairs=_read_flip_pairs(metadata, names, place, report))

    def write_vocabulary(self, vocabulary: Keypoints) -> AnyMapping[str, Json]:
        found: dict[str, Json] = {"keypoints": vocabulary.names.names}
        if vocabulary.sigmas != _default_sigmas(len(vocabulary.names.names)):
            found["sigmas"] = vocabulary.sigmas
        if vocabulary.flip_pairs:
            found["flip_pairs"] = vocabulary.flip_pairs
        return found

    def names(self, vocabulary: Keypoints) -> Sequence[str]:
        return vocabulary.names.names

    def read(
        self, value: Value, size: ImageSize, place: Place, vocabulary: Keypoints, report: Report
    ) -> Instances | None:
        return read_objects(value, size, place, report, lambda each: _read_instance(each, vocabulary.names))

    def write(self, annotation: Instances, size: ImageSize, vocabulary: Keypoints) -> Json:
        return [_write_instance(each) for each in annotation]

    def count(self, annotation: Instances) -> int:
        return len(annotation)

    def categories(self, annotation: Instances) -> Sequence[str]:
        return [name for each in annotation for name, point in each.points.items() if point is not None]


def _default_sigmas(count: int) -> tuple[float, ...]:
    """One part in K for each of K points."""
    return (1 / count,) * count if count else ()


def _read_sigmas(metadata: Mapping, count: int, place: Place, report: Report) -> tuple[float, ...]:
    value = metadata.get("sigmas")
    if value is None:
        return _default_sigmas(count)
    place = replace(place, line=metadata.lines["sigmas"])
    wanted = "`sigmas` must be a list of positive numbers, one for each of `keypoints`"
    if not isinstance(value, List) or len(value) != count:
        found = f"{len(value)} values" if isinstance(value, List) else "no list"
        report.fail("bad_value", f"{wanted}: {found} for {count} keypoints", place, value=shown_numbers(value))
        return _default_sigmas(count)
    try:
        sigmas = tuple(read_number(each) for each in value)
    except NumberError as error:
        report.fail(error.rule, f"{wanted}: {error}", place, value=shown_numbers(value))
        return _default_sigmas(count)
    if min(sigmas, default=1) <= 0:
        report.fail("bad_value", f"{wanted}: one is not positive", place, value=shown_numbers(value))
        return _default_sigmas(count)
    return sigmas


def _read_flip_pairs(metadata: Mapping, names: Names, place: Place, report: Report) -> tuple[tuple[str, str], ...]:
    value = metadata.get("flip_pairs")
    if value is None:
        return ()
    place = replace(place, line=metadata.lines["flip_pairs"])
    wanted = "`flip_pairs` must be a list of pairs of different keypoints, each keypoint in one pair at most"
    if not isinstance(value, List):
        report.fail("bad_value", wanted, place, value=shown(value))
        return ()
    taken: set[str] = set()
    pairs: list[tuple[str, str]] = []
    for pair, line in zip(value, value.lines, strict=True):
        known = {each for each in pair if isinstance(each, str)} & names.known if isinstance(pair, List) else set()
        if not isinstance(pair, List) or len(pair) != 2 or len(known) != 2 or known & taken:
            report.fail("bad_flip_pair", wanted, replace(place, line=line), value=shown_numbers(pair))
            continue
        taken |= known
        pairs.append((str(pair[0]), str(pair[1])))
    return tuple(pairs)


def _read_instance(each: RawObject, names: Names) -> Instance | None:
    points: dict[str, Point | None] = {}
    for name, value in each.item.items():
        if name in names.known:
            points[name] = _read_point(each, name, value)
        elif name not in RESERVED_NAMES:
            close = difflib.get_close_matches(name, names.names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "declare it in `keypoints`, or mend it"
            each.error("unknown_keypoint", f"{shown(name)!r} is no keypoint: {hint}", name, value=name)
    bbox = read_bbox(each) if each.item.get("bbox") is not None else None
    area = _read_area(each)
    crowd, ignore = each.flags()
    instance = Instance(points=points, bbox=bbox, area=area, crowd=crowd, ignore=ignore)
    if not each.bad:
        _check_places(each, instance)
    return None if each.bad else instance


def _read_point(each: RawObject, name: str, value: Value) -> Point | None:
    if value is None:
        return None
    try:
        return read_point(value)
    except NumberError as error:
        each.error(error.rule, f"in the keypoint {name!r} {error}", name, value=shown_numbers(value))
        return None


def _read_area(each: RawObject) -> float | None:
    value = each.item.get("area")
    if value is None:
        return None
    try:
        area = read_number(value)
    except NumberError as error:
        each.error(error.rule, f"'area' must be a number: {error}", "area", value=shown(value))
        return None
    if area <= 0:
        each.error("no_area", "'area' must be more than 0, or be left out", "area", value=shown(value))
    return area


def _check_places(each: RawObject, instance: Instance) -> None:
    """What the points say together: outside the image, fractions of it, or nothing."""
    places = instance.places
    if not places:
        if instance.bbox is None:
            each.warn("empty_instance", "the object has neither a point nor a bbox: leave it out")
        return
    box = bounds(places)
    name, value = next((name, each.item[name]) for name, point in instance.points.items() if point is not None)
    if len(places) > 1:
        check_fractions(each, box, name, value)
    outside = [
        name for name, point in instance.points.items() if point is not None and overhangs((*point, *point), each.size)
    ]
    if outside:
        key = outside[0]
        check_overhang(each, box, key, each.item[key], outside=len(outside) == len(places))


def _write_instance(instance: Instance) -> Json:
    found: dict[str, Json] = {
        name: None if point is None else [written(point[0]), written(point[1])]
        for name, point in instance.points.items()
    }
    if instance.bbox is not None:
        found["bbox"] = write_bbox(instance.bbox)
    if instance.area is not None:
        found["area"] = written(instance.area)
    return {**found, **written_flags(crowd=instance.crowd, ignore=instance.ignore)}
