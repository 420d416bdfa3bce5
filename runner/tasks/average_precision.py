"""Average precision as COCO counts it: the one file that knows hotcoco, which gives pycocotools' numbers.

Images are matched as they are added: what is kept does not grow with their pixels. Crowds and what is to be ignored are
COCO's `iscrowd`. A metric of which there is no object (none that is large, say) is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import Params, StreamingEval, metrics
from numpy.typing import NDArray

from runner.tasks.objects import Flags, Integers
from runner.tasks.task import MetricValue
from runner.trainer.view import Floats

CATEGORIES_TOLD_APART_MAX = 200
"""With more categories, no series for each is logged."""
METRICS: Mapping[str, bool] = dict.fromkeys(
    ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mean_recall"), True
)
THRESHOLDS = {"50": 0, "75": 5}
"""Places among the overlaps from 0.50 to 0.95 in steps of 0.05."""
EVERY_SIZE = 0
OVERLAPS = np.linspace(0.5, 0.95, 10)
FOUND_MAX = 100
"""Objects of one category in one image that are counted, the likeliest ones."""


class AveragePrecision:
    """Gathers images. `kind` is COCO's: bbox, segm or keypoints, which go with `sigmas`."""

    def __init__(self, names: Sequence[str], kind: str = "bbox", sigmas: Sequence[float] | None = None) -> None:
        self._names = names
        parameters = Params(kind)
        if sigmas is not None:
            parameters.kpt_oks_sigmas = list(sigmas)
        self._sizes = parameters.area_rng_lbl
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        self._stream = StreamingEval(categories, kind, params=parameters)
        self._images = self._objects = 0

    def add(
        self, width: int, height: int, truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
    ) -> None:
        """An image: its objects, and what was found, both as COCO writes them but for ids; `category` is from 0 on."""
        self._images += 1
        self._stream.update(
            [{"id": self._images, "width": width, "height": height}],
            [self._annotation(each) for each in truth],
            [self._annotation(each) for each in found],
        )

    def values(self, prefix: str = "map") -> list[MetricValue]:
        """All metrics, the mean over categories, overlaps and recalls first, as `prefix`; none where no object was."""
        if not self._images:
            return []
        evaluation = self._stream.finalize()
        evaluation.accumulate()
        counted = evaluation.eval
        assert counted is not None, "it was accumulated"
        precision, recall = np.asarray(counted["precision"]), np.asarray(counted["recall"])
        whole = precision[..., EVERY_SIZE, -1]
        means = {prefix: _mean(whole)}
        means |= {f"{prefix}_{name}": _mean(whole[place]) for name, place in THRESHOLDS.items()}
        means |= {
            f"{prefix}_{size}": _mean(precision[..., place, -1])
            for place, size in enumerate(self._sizes)
            if place != EVERY_SIZE
        }
        means["mean_recall"] = _mean(recall[..., EVERY_SIZE, -1])
        values = [MetricValue(name=name, value=value) for name, value in means.items() if value is not None]
        if 1 < len(self._names) <= CATEGORIES_TOLD_APART_MAX:
            of_category = ((name, _mean(whole[:, :, index])) for index, name in enumerate(self._names))
            values += [
                MetricValue(name="average_precision", value=value, context={"class": name})
                for name, value in of_category
                if value is not None
            ]
        return values

    def _annotation(self, item: Mapping[str, Any]) -> dict[str, Any]:
        self._objects += 1
        found = {key: value for key, value in item.items() if key != "category"}
        return {**found, "id": self._objects, "image_id": self._images, "category_id": item["category"] + 1}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Matched:
    """Of one category in one image: scores, and by overlap whether what was found is right, or does not count."""

    scores: Floats
    right: Flags
    ignored: Flags


class OverlapPrecision:
    """The same for shapes that COCO does not have: by how much they overlap, of any size."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._objects: Counter[int] = Counter()
        self._matched: dict[int, list[_Matched]] = defaultdict(list)

    def add(self, overlaps: Floats, *, found: Integers, scores: Floats, truth: Integers, crowd: Flags) -> None:
        """An image: overlaps are found x true objects, `found` and `truth` their categories.

        With a crowd the overlap is the share of what was found that lies in it.
        """
        for category in {*found.tolist(), *truth.tolist()}:
            order = np.flatnonzero(found == category)
            order = order[np.argsort(-scores[order], kind="stable")][:FOUND_MAX]
            wanted = np.flatnonzero(truth == category)
            self._objects[category] += int((~crowd[wanted]).sum())
            right, ignored = _matches(overlaps[np.ix_(order, wanted)], crowd[wanted])
            self._matched[category].append(_Matched(scores=scores[order], right=right, ignored=ignored))

    def values(self) -> list[MetricValue]:
        """As `AveragePrecision` has them, without those by size."""
        precision: dict[int, Floats] = {}
        recall: list[Floats] = []
        for category, objects in sorted(self._objects.items()):
            if not objects:
                continue
            matched = self._matched[category]
            scores = np.concatenate([each.scores for each in matched])
            right = np.concatenate([each.right for each in matched], axis=1)
            ignored = np.concatenate([each.ignored for each in matched], axis=1)
            precision[category] = np.array(
                [
                    metrics.average_precision(scores, row, objects, without)
                    for row, without in zip(right, ignored, strict=True)
                ]
            )
            recall.append((right & ~ignored).sum(axis=1) / objects)
        if not precision:
            return []
        whole = np.stack(list(precision.values()))
        values = [MetricValue(name="map", value=float(whole.mean()))]
        values += [
            MetricValue(name=f"map_{name}", value=float(whole[:, place].mean())) for name, place in THRESHOLDS.items()
        ]
        values.append(MetricValue(name="mean_recall", value=float(np.mean(recall))))
        if 1 < len(self._names) <= CATEGORIES_TOLD_APART_MAX:
            values += [
                MetricValue(name="average_precision", value=float(row.mean()), context={"class": self._names[category]})
                for category, row in precision.items()
            ]
        return values


def _matches(overlaps: Floats, crowd: Flags) -> tuple[Flags, Flags]:
    """Whether what was found, the likeliest first, is right, and whether it does not count; overlaps x found each.

    As COCO matches: each takes the object that it overlaps most of those that nobody took, else a crowd.
    """
    right = np.zeros((len(OVERLAPS), len(overlaps)), np.bool_)
    ignored = right.copy()
    taken = np.zeros((len(OVERLAPS), int((~crowd).sum())), np.bool_)
    objects, crowds = overlaps[:, ~crowd], overlaps[:, crowd]
    lines = np.minimum(OVERLAPS, 1 - 1e-10)
    every = np.arange(len(lines))
    for place, (row, heaps) in enumerate(zip(objects, crowds, strict=True)):
        if row.size and row.max() >= lines[0]:
            free = np.where(taken, -1.0, row)[:, ::-1]  # of equal ones the last
            best = row.size - 1 - free.argmax(axis=1)
            hit = free.max(axis=1) >= lines
            right[hit, place] = True
            taken[every[hit], best[hit]] = True
        if heaps.size:
            ignored[:, place] = ~right[:, place] & (heaps.max() >= lines)
    return right, ignored


def coco_box(box: NDArray[Any]) -> list[float]:
    """Left, top, width and height of a box of ours."""
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]


def _mean(values: NDArray[np.float64]) -> float | None:
    """Over what there is: -1 stands for nothing."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None
