"""What each foreign codec writes, it reads again: on annotations that nobody would think of."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.category_colors import category_colors
from services.conversion.foreign.coco.annotation import RawImage, raw_image
from services.conversion.foreign.coco.document import CocoAnnotation, CocoImage
from services.conversion.foreign.coco.instances import CocoBoxes, CocoMasks
from services.conversion.foreign.coco.keypoints import CocoPoints
from services.conversion.foreign.coco.panoptic import CocoSegments
from services.conversion.foreign.image_names import common_folder, locate, native_images
from services.conversion.foreign.keypoint_names import keypoints_of
from services.conversion.foreign.voc.format import VocBoxes
from services.conversion.foreign.voc.xml import read_voc
from services.conversion.formats.colors import Colors
from services.conversion.formats.format import MapFile
from services.conversion.formats.instance_segmentation import Instance, InstanceMap
from services.conversion.formats.keypoint_detection import Instance as Person
from services.conversion.formats.names import Names
from services.conversion.formats.object_detection import Box
from services.conversion.formats.panoptic_segmentation import PanopticColors, PanopticMap, Segment
from services.conversion.index import ImageSize
from services.conversion.raster.error import RasterLimits
from services.conversion.raster.runs import runs_of_mask

PLACE = Place(file="a.json", image="a.png")
NAMES = ("cat", "<dog> & co")
IDS = {"cat": 9, "<dog> & co": 4}
BACK = {number: name for name, number in IDS.items()}
LIMITS = RasterLimits(pixels_max=10**6, pages_max=1)

sides = st.integers(1, 12)
masks = hnp.arrays(np.bool_, st.tuples(sides, sides)).filter(lambda mask: mask.any())


@st.composite
def boxes(draw: st.DrawFn, size: ImageSize) -> tuple[float, float, float, float]:
    xs = sorted(draw(st.lists(st.integers(0, 4 * size.width), min_size=2, max_size=2, unique=True)))
    ys = sorted(draw(st.lists(st.integers(0, 4 * size.height), min_size=2, max_size=2, unique=True)))
    return xs[0] / 4, ys[0] / 4, xs[1] / 4, ys[1] / 4


def read_back(fragment: Fragment, size: ImageSize) -> RawImage:
    """The pieces as they lie in COCO's document."""
    annotations = [
        msgspec.json.decode(b'{"id":1,"image_id":1,' + piece[1:], type=CocoAnnotation) for piece in fragment.pieces
    ]
    return raw_image(CocoImage(id=1, file_name="a.png", width=size.width, height=size.height), annotations)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_coco_masks_come_back_with_crowds(data: st.DataObject) -> None:
    first = data.draw(masks)
    height, width = first.shape
    others = data.draw(st.lists(hnp.arrays(np.bool_, first.shape).filter(lambda mask: mask.any()), max_size=3))
    annotation = InstanceMap(
        width=width,
        height=height,
        instances=tuple(
            Instance(
                category=data.draw(st.sampled_from(NAMES)), mask=runs_of_mask(mask), crowd=data.draw(st.booleans())
            )
            for mask in (first, *others)
        ),
    )
    size, vocabulary = ImageSize(width=width, height=height), Colors(names=NAMES, colors={})
    codec, report = CocoMasks(names=BACK, ids=IDS), Report(findings_max=9)
    back = codec.read(read_back(codec.write(annotation, size, vocabulary), size), size, PLACE, vocabulary, report)
    assert (back, report.findings) == (annotation, [])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_come_back_through_coco_and_voc(data: st.DataObject) -> None:
    size = ImageSize(width=data.draw(st.integers(1, 500)), height=data.draw(st.integers(1, 500)))
    vocabulary = Names(names=NAMES)
    annotation = tuple(
        Box(category=data.draw(st.sampled_from(NAMES)), bbox=box)
        for box in data.draw(st.lists(boxes(size), max_size=4))
    )
    report = Report(findings_max=9)
    coco = CocoBoxes(names=BACK, ids=IDS)
    raw = read_back(coco.write(annotation, size, vocabulary), size)
    assert coco.read(raw, size, PLACE, vocabulary, report) == annotation
    voc = VocBoxes()
    xml = b"<annotation>" + b"".join(voc.write(annotation, size, vocabulary).pieces) + b"</annotation>"
    assert voc.read(read_voc(xml), size, PLACE, vocabulary, report) == annotation
    assert {finding.rule for finding in report.findings} <= {"one_pixel_box"}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_points_that_are_there_come_back_through_coco(data: st.DataObject) -> None:
    size = ImageSize(width=50, height=40)
    vocabulary = keypoints_of(("nose", "left_eye", "right_eye"))
    places = st.tuples(st.integers(0, 50).map(float), st.integers(0, 40).map(float))
    annotation = tuple(
        Person(
            points=data.draw(st.dictionaries(st.sampled_from(vocabulary.names.names), places)),
            bbox=data.draw(boxes(size)),
            area=data.draw(st.integers(1, 99).map(float)),
            crowd=data.draw(st.booleans()),
        )
        for _ in range(data.draw(st.integers(0, 3)))
    )
    codec, report = CocoPoints(names={1: "person"}, points=vocabulary.names.names), Report(findings_max=9)
    back = codec.read(read_back(codec.write(annotation, size, vocabulary), size), size, PLACE, vocabulary, report)
    assert (back, report.findings) == (annotation, [])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_panoptic_maps_come_back_through_coco(data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.uint16, st.tuples(sides, sides), elements=st.integers(0, 5)))
    left = [int(number) for number in np.unique(labels) if number]
    if not left:
        return
    labels = np.searchsorted([0, *left], labels).astype(np.uint16)
    segments = tuple(
        Segment(category=data.draw(st.sampled_from(NAMES)), id=number, crowd=data.draw(st.booleans()))
        for number in range(1, len(left) + 1)
    )
    size = ImageSize(width=labels.shape[1], height=labels.shape[0])
    vocabulary = PanopticColors(names=NAMES, colors={})
    codec, report = CocoSegments(names=BACK, ids=IDS, limits=LIMITS), Report(findings_max=9)
    about, png = codec.write(PanopticMap(labels=labels, segments=segments), size, vocabulary).pieces
    back = codec.read(MapFile(suffix=".png", content=png, about=about), size, PLACE, vocabulary, report)
    assert report.findings == []
    assert back is not None
    assert (back.segments, back.labels.tolist()) == (segments, labels.tolist())


def test_a_mask_smaller_than_its_image_is_written_at_the_images_size() -> None:
    mask = runs_of_mask(np.array([[True, False], [False, False]]))
    annotation = InstanceMap(width=2, height=2, instances=(Instance(category="cat", mask=mask, ignore=True),))
    fragment = CocoMasks(names=BACK, ids=IDS).write(
        annotation, ImageSize(width=4, height=6), Colors(names=NAMES, colors={})
    )
    (piece,) = (msgspec.json.decode(piece) for piece in fragment.pieces)
    assert (piece["segmentation"]["size"], piece["bbox"], piece["area"]) == ([6, 4], [0, 0, 2, 3], 6)
    assert (piece["iscrowd"], piece["ignore"], fragment.lost) == (1, 1, {"scaled": 1, "ignore": 1})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "a__b", "c"]), min_size=1, max_size=3).map("/".join), unique=True))
def test_native_names_are_plain_unique_and_kept_where_they_can_be(folders: list[str]) -> None:
    paths = [f"{folder}.png" for folder in folders]
    images = native_images(paths)
    names = [image.name for image in images]
    assert len(set(names)) == len(names) == len(paths)
    assert not any("/" in name for name in names)
    assert names == sorted(names)
    if len({path.rpartition("/")[0] for path in paths}) == 1:
        assert all(image.path.rpartition("/")[2] == image.name for image in images)
        assert common_folder(images) == paths[0].rpartition("/")[0]


def test_the_folder_that_holds_most_is_taken_and_nothing_that_is_not_listed() -> None:
    paths = dict.fromkeys(("x/1.jpg", "y/1.jpg", "y/2.jpg", "y/sub/3.jpg", "3.jpg"), 1)
    assert locate(["1.jpg", "2.jpg", "3.jpg"], paths) == {"1.jpg": "y/1.jpg", "2.jpg": "y/2.jpg"}
    assert locate(["sub/3.jpg", "/etc/passwd", ""], paths) == {"sub/3.jpg": "y/sub/3.jpg"}
    assert locate(["../../y/1.jpg", "../x/3.jpg"], paths) == {"../../y/1.jpg": "y/1.jpg"}


def test_every_category_has_a_colour_of_its_own_and_none_is_black() -> None:
    names = [str(number) for number in range(5_000)]
    given_colors: dict[str, Any] = {"1": (0, 0, 0), "2": (9, 9, 9), "3": (9, 9, 9)}
    colors = category_colors(names, given_colors)
    assert list(colors) == names
    assert colors["2"] == (9, 9, 9)
    assert len({(0, 0, 0), *colors.values()}) == 5_001
    assert category_colors(names) == category_colors(names)
