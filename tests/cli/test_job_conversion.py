"""The table of what conversions gave."""

import io

from rich.console import Console
from sihlai.conversion.v1 import task_pb2
from sihlai.conversion.v1.conversion_service_pb2 import ConversionResult, ConversionStep, DroppedCount
from sihlai.scheduler.v1 import conversion_report_service_pb2 as pb

from services.cli.command.conversions import newest, reports_drawing

STEPS = [
    ConversionStep(
        from_task=task_pb2.TASK_PANOPTIC_SEGMENTATION, to=task_pb2.TASK_INSTANCE_SEGMENTATION, losses=["stuff"]
    ),
    ConversionStep(from_task=task_pb2.TASK_INSTANCE_SEGMENTATION, to=task_pb2.TASK_OBJECT_DETECTION),
]


def report(head: str, attempt: int, *, split: int = pb.DATASET_SPLIT_TRAINING, **result: object) -> pb.ConversionReport:
    return pb.ConversionReport(head=head, attempt=attempt, split=split, result=ConversionResult(**result))


def drawn(*reports: pb.ConversionReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(reports_drawing(reports))
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO


def test_path_counts_and_reasons_stand_in_a_row() -> None:
    dropped = [DroppedCount(rule="no_area", annotations=1_234, images=17)]
    shown = drawn(
        report(
            "boxes",
            1,
            steps=STEPS,
            images_in=2_000,
            labelled_in=1_900,
            labelled_out=1_880,
            annotations_in=20_000,
            annotations_out=18_766,
            dropped=dropped,
            warnings=3,
            errors=1,
            contact_sheet="contact_sheet.png",
        )
    )
    for cell in (
        "panoptic segmentation → instance segmentation → object detection",
        "1,900 → 1,880 of 2,000",
        "20,000 → 18,766",
        "1,234 in 17 images: no_area",
        "1 error, 3 warnings",
        "contact_sheet.png",
        "as attempt 1 found them",
    ):
        assert cell in shown


def test_what_a_dataset_says_of_itself_is_no_markup() -> None:
    dropped = [DroppedCount(rule="[red]no\x1b[31m", annotations=1, images=1)]
    shown = drawn(report("a", 1, dropped=dropped, contact_sheet="[bold].png"))
    assert "[red]no" in shown
    assert "[bold].png" in shown
    assert "\x1b[31m" not in shown


def test_of_each_head_and_dataset_the_newest_attempt_is_shown() -> None:
    found = [
        report("a", 2),
        report("a", 1),
        report("a", 1, split=pb.DATASET_SPLIT_VALIDATION),
        report("b", 1),
    ]
    kept = newest(found)
    assert [(each.head, each.attempt, each.split) for each in kept] == [("a", 2, 1), ("a", 1, 2), ("b", 1, 1)]
    assert "each as its newest attempt found it" in drawn(*kept)
