"""What an inspection tells of each task: how many images are in which state, and how its categories are balanced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2

from services.conversion.task import Task

COLORS = "categories: [007, no, 1.10]\ncolors: {007: [255, 0, 0], no: '#00ff00'}\n"
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
BOX, OTHER = "{category: 007, bbox: [0, 0, 2, 2]}", "{category: no, bbox: [1, 1, 3, 3], ignore: true}"
QUAD = "{category: no, quad: [[0, 0], [2, 0], [2, 2], [0, 2]]}"

Write = Callable[[Path], object]


def text(content: str) -> Write:
    return lambda path: path.write_text(content)


def pages(*rows: Any, kind: type = np.uint8) -> Write:
    """Pages as rows of pixels."""

    def write(path: Path) -> None:
        first, *others = [Image.fromarray(np.array(page, kind)) for page in rows]
        first.save(path, **({"save_all": True, "append_images": others} if path.suffix == ".tif" else {}))

    return write


def page(*colors: tuple[int, int, int]) -> list[Any]:
    return [[color] * 5 for color in colors]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`files`: what is written of the images a to d; `states`: labelled, negative, unlabelled.

    `categories`: images and annotations of each, in the order of the metadata.
    """

    metadata: str = ""
    files: Mapping[str, Write]
    states: tuple[int, int, int]
    categories: Mapping[str, tuple[int, int]]


def values(content: str) -> Mapping[str, Write]:
    return {"values.yaml": text(content)}


CASES: Mapping[Task, Case] = {
    Task.MULTICLASS_CLASSIFICATION: Case(
        metadata="categories: [007, no, 1.10]\n",
        files=values("a.png: no\nb.png: 007\nc.png: no\nd.png:\n"),
        states=(3, 0, 1),
        categories={"007": (1, 1), "no": (2, 2), "1.10": (0, 0)},
    ),
    Task.MULTILABEL_CLASSIFICATION: Case(
        metadata="labels: [007, no]\n",
        files=values("a.png: [no, 007]\nb.png: []\nc.png: [no]\n"),
        states=(2, 1, 1),
        categories={"007": (1, 1), "no": (2, 2)},
    ),
    Task.METRIC_LEARNING: Case(
        metadata="identities: [007, no]\n",
        files=values("a.png: no\nb.png: null\n"),
        states=(1, 0, 3),
        categories={"007": (0, 0), "no": (1, 1)},
    ),
    Task.REGRESSION: Case(
        metadata="range: [0, 1]\n", files=values("a.png: 0\nb.png: 1\n"), states=(2, 0, 2), categories={}
    ),
    Task.SCENE_TEXT_RECOGNITION: Case(
        metadata="tokens: no7\n",
        files=values("a.png: noo\nb.png: []\nc.png: ''\n"),
        states=(1, 2, 1),
        categories={"n": (1, 1), "o": (1, 2), "7": (0, 0)},
    ),
    Task.OBJECT_DETECTION: Case(
        metadata="categories: [007, no]\n",
        files=values(f"a.png: [{BOX}, {BOX}, {OTHER}]\nb.png: []\nc.png: [{BOX}]\n"),
        states=(2, 1, 1),
        categories={"007": (2, 3), "no": (1, 1)},
    ),
    Task.QUADRILATERAL_DETECTION: Case(
        metadata="categories: [007, no]\n",
        files=values(f"a.png: [{QUAD}]\nb.png: []\n"),
        states=(1, 1, 2),
        categories={"007": (0, 0), "no": (1, 1)},
    ),
    Task.KEYPOINT_DETECTION: Case(
        metadata="keypoints: [nose, chin]\n",
        files=values("a.png: [{nose: [1, 1], chin: null}, {nose: [2, 2], chin: [3, 3]}]\nb.png: []\n"),
        states=(1, 1, 2),
        categories={"nose": (1, 2), "chin": (1, 1)},
    ),
    Task.INSTANCE_SEGMENTATION: Case(
        metadata=COLORS,
        files={
            "values/a.tif": pages(page(RED, RED, BLACK, BLACK), page(BLACK, RED, RED, RED), page(*[GREEN] * 4)),
            "values/b.tif": pages(page(BLACK, BLACK, BLACK, BLACK)),
        },
        states=(1, 1, 2),
        categories={"007": (1, 2), "no": (1, 1), "1.10": (0, 0)},
    ),
    Task.SEMANTIC_SEGMENTATION: Case(
        metadata=COLORS,
        files={
            "values/a.png": pages(page(RED, RED, GREEN, BLACK)),
            "values/b.png": pages(page(BLACK, BLACK, BLACK, BLACK)),
        },
        states=(1, 0, 3),
        categories={"007": (1, 1), "no": (1, 1), "1.10": (0, 0)},
    ),
    Task.PANOPTIC_SEGMENTATION: Case(
        metadata=COLORS,
        files={"values/a.tif": lambda path: _write_panoptic(path)},
        states=(1, 0, 3),
        categories={"007": (1, 2), "no": (1, 1), "1.10": (0, 0)},
    ),
    Task.DEPTH_ESTIMATION: Case(
        metadata="range: [1, 9]\n",
        files={
            "values/a.png": pages([[0, 1, 2, 3, 4]] * 4, kind=np.uint16),
            "values/b.png": pages([[0] * 5] * 4),
        },
        states=(1, 0, 3),
        categories={},
    ),
    Task.ANOMALY_DETECTION: Case(
        files=values("a.png: normal\nb.png: anomalous\nc.png: anomalous\n"),
        states=(3, 0, 1),
        categories={"normal": (1, 1), "anomalous": (2, 2)},
    ),
    Task.AUTOENCODING: Case(files={}, states=(0, 0, 4), categories={}),
    Task.VIEW_INVARIANCE_LEARNING: Case(files={}, states=(0, 0, 4), categories={}),
}


def _write_panoptic(path: Path) -> None:
    colors = Image.fromarray(np.array(page(RED, RED, GREEN, BLACK), np.uint8))
    ids = Image.fromarray(np.array([[0] * 5, [1] * 5, [1] * 5, [9] * 5], np.uint8))
    colors.save(path, save_all=True, append_images=[ids])


@pytest.mark.parametrize("task", Task)
def test_states_and_balance_are_those_of_the_annotations(task: Task, run: Any, dataset: Any) -> None:
    case = CASES[task]
    place = next(iter(case.files), "").partition("/")[0]
    where = f"annotations: {place}\n" if place else ""
    dataset.write(f"task: {task}\n{case.metadata}{where}", **{"notes.txt": ""})
    for name, write in case.files.items():
        (dataset.path / name).parent.mkdir(exist_ok=True)
        write(dataset.path / name)

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source)
        assert findings == []
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))
        (found,) = answer.annotation_sets
        assert (found.labelled_images, found.negative_images, found.unlabelled_images) == case.states
        balance = {each.category: (each.images, each.annotations) for each in found.categories}
        assert (balance, list(balance)) == (case.categories, list(case.categories))

    run(test)
