"""What is known of keypoints by their names alone: how exactly people place them, and which a mirror exchanges."""

from __future__ import annotations

from collections.abc import Mapping

from services.conversion.formats.keypoint_detection import Keypoints
from services.conversion.formats.names import Names

PERSON_SIGMAS: Mapping[str, float] = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
"""Of COCO's 17 points, as its evaluation publishes them; no file has them."""


def keypoints_of(points: tuple[str, ...], flip_pairs: tuple[tuple[str, str], ...] | None = None) -> Keypoints:
    """The points with COCO's sigmas where all are COCO's, and, unless they are given, pairs of left and right."""
    known = all(name in PERSON_SIGMAS for name in points)
    sigmas = tuple(PERSON_SIGMAS[name] for name in points) if known else (1 / len(points),) * len(points)
    if flip_pairs is not None:
        return Keypoints(names=Names(names=points), sigmas=sigmas, flip_pairs=flip_pairs)
    pairs = []
    for name in points:
        for left, right in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
            mirrored = name.replace(left, right)
            if left in name and mirrored in points:
                pairs.append((name, mirrored))
                break
    return Keypoints(names=Names(names=points), sigmas=sigmas, flip_pairs=tuple(pairs))
