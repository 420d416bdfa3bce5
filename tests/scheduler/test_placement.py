"""Which job fits which runner."""

from __future__ import annotations

import pytest

from services.scheduler.domain.placement import GIB, Capabilities, Gpu, Needs, fits, lacking, needs_from_key, size

SMALL = Gpu(model="small", memory_bytes=16 * GIB)
LARGE = Gpu(model="large", memory_bytes=80 * GIB)


@pytest.mark.parametrize(
    ("needs", "gpus", "can"),
    [
        (Needs(), (), True),
        (Needs(), (SMALL,), True),
        (Needs(gpus=1), (), False),
        (Needs(gpus=1), (SMALL,), True),
        (Needs(gpus=2), (SMALL,), False),
        (Needs(gpus=1, gpu_memory_bytes=40 * GIB), (SMALL,), False),
        (Needs(gpus=1, gpu_memory_bytes=40 * GIB), (SMALL, LARGE), True),
        (Needs(gpus=2, gpu_memory_bytes=40 * GIB), (SMALL, LARGE), False),
        (Needs(gpu_memory_bytes=40 * GIB), (), True),
    ],
)
def test_runner_needs_enough_gpus_with_enough_memory(needs, gpus, can):
    assert fits(needs, Capabilities(gpus=gpus)) is can


def test_runner_needs_a_head_for_every_task():
    needs = Needs(tasks=frozenset({"REGRESSION", "OBJECT_DETECTION"}))
    assert fits(needs, Capabilities(tasks=frozenset({"REGRESSION", "OBJECT_DETECTION", "DEPTH_ESTIMATION"})))
    assert lacking(needs, Capabilities(tasks=frozenset({"REGRESSION"}))) == ["a head for object detection"]


def test_runner_needs_the_extras_of_a_backbone():
    needs = Needs(extras=frozenset({"timm"}))
    assert fits(needs, Capabilities(extras=frozenset({"timm", "export"})))
    assert lacking(needs, Capabilities()) == ["timm (install sihlai[timm] there)"]


@pytest.mark.parametrize(
    "needs",
    [
        Needs(),
        Needs(gpus=2, gpu_memory_bytes=3 * GIB, tasks=frozenset({"REGRESSION", "AUTOENCODING"})),
        Needs(tasks=frozenset({"REGRESSION"}), extras=frozenset({"timm", "other"}), avoided=("one", "two")),
        Needs(extras=frozenset({"timm"})),
    ],
)
def test_needs_come_back_from_their_key(needs):
    assert needs_from_key(needs.key) == needs


def test_odd_amounts_of_memory_share_a_key():
    assert Needs(gpus=1, gpu_memory_bytes=GIB + 1).key == Needs(gpus=1, gpu_memory_bytes=GIB).key


def test_smaller_runner_sorts_before_a_larger_one():
    runners = [
        Capabilities(gpus=(LARGE,)),
        Capabilities(),
        Capabilities(gpus=(SMALL,)),
        Capabilities(gpus=(SMALL, SMALL)),
    ]
    assert sorted(runners, key=size) == [runners[1], runners[2], runners[0], runners[3]]


def test_memory_that_is_asked_for_is_never_rounded_up() -> None:
    card = Capabilities(gpus=(Gpu(model="card", memory_bytes=round(23.99 * GIB)),))
    for asked_gib, is_enough in ((23.5, True), (23.98, True), (23.995, False), (24, False)):
        needs = Needs(gpus=1, gpu_memory_bytes=round(asked_gib * GIB))
        assert fits(needs_from_key(needs.key), card) == is_enough
