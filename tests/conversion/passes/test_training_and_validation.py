"""A dataset beside the one that is validated on: what must agree, and what may differ."""

from __future__ import annotations

from typing import Any

from sihlai.conversion.v1 import dataset_pb2

ERROR = dataset_pb2.SEVERITY_ERROR
WARNING = dataset_pb2.SEVERITY_WARNING


def test_the_training_vocabulary_rules_and_no_image_is_in_both(run: Any, dataset: Any, other_dataset: Any) -> None:
    dataset.write()
    other_dataset.write(
        "task: multiclass classification\ncategories: [dog, bird]\nannotations: labels.yaml\n",
        images=("x.png",),
        **{"labels.yaml": "x.png: dog\n"},
    )
    (other_dataset.path / "images/y.png").write_bytes((dataset.path / "images/c.png").read_bytes())

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source, validation_source=other_dataset.source)
        assert [(f.severity, f.rule, f.value, f.image) for f in findings] == [
            (ERROR, "unknown_in_training", "bird", ""),
            (WARNING, "shared_image", "", "a.png"),
            (WARNING, "shared_image", "", "c.png"),
        ]
        assert totals.errors == 1

    run(test)


def test_the_validation_dataset_is_validated_too(run: Any, dataset: Any, other_dataset: Any) -> None:
    dataset.write()
    other_dataset.write(images=("x.png", "y.png"), **{"labels.yaml": "x.png: cow\ny.png: dog\nz.png: cat\n"})
    other_dataset.image("x.png", color=50)
    (other_dataset.path / "images/y.png").write_bytes(b"broken")

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source, validation_source=other_dataset.source)
        assert [(f.severity, f.rule, f.file, f.line, f.image) for f in findings] == [
            (ERROR, "unreadable_image", "validation: images/y.png", 0, "y.png"),
            (ERROR, "undeclared_category", "validation: labels.yaml", 1, "x.png"),
            (ERROR, "annotation_without_image", "validation: labels.yaml", 3, "z.png"),
        ]
        assert (totals.errors, totals.images) == (3, 6)
        alone, _ = await service.findings(other_dataset.source)
        assert [f.file for f in alone] == ["images/y.png", "labels.yaml", "labels.yaml"]

    run(test)


def test_broken_metadata_of_the_validation_dataset_are_findings(run: Any, dataset: Any, other_dataset: Any) -> None:
    dataset.write()
    other_dataset.write("task: multiclass classification\n", images=("x.png",))
    other_dataset.image("x.png", color=50)

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source, validation_source=other_dataset.source)
        assert [(f.severity, f.rule, f.file) for f in findings] == [
            (ERROR, "missing_key", "validation: metadata.yaml"),
        ]
        assert totals.errors == 1

    run(test)


def test_validation_may_have_other_identities(run: Any, dataset: Any, other_dataset: Any) -> None:
    head = "task: metric learning\nannotations: labels.yaml\nidentities: "
    dataset.write(head + "[ann, bob]\n", images=("a.png",), **{"labels.yaml": "a.png: ann\n"})
    other_dataset.write(head + "[cyd]\n", images=(), **{"labels.yaml": "z.png: cyd\n"})
    other_dataset.image("z.png", color=99)

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source, validation_source=other_dataset.source)
        # As categories of multiclass classification they could not: that is said once.
        assert [(f.severity, f.rule, f.value) for f in findings] == [(WARNING, "unshared_identities", "ann, bob, cyd")]
        assert "multiclass classification" in findings[0].message
        other_dataset.text("metadata.yaml", head + "[bob, ann]\n")
        other_dataset.text("labels.yaml", "z.png: ann\n")
        assert (await service.findings(dataset.source, validation_source=other_dataset.source))[0] == []

    run(test)


def test_the_only_sets_of_a_task_go_together_whatever_their_names(run: Any, dataset: Any, other_dataset: Any) -> None:
    dataset.write()
    other_dataset.write(
        "- name: kinds\n  task: multiclass classification\n  categories: [dog, cow]\n  annotations: labels.yaml\n"
        "- name: looks\n  task: multilabel classification\n  labels: [red]\n  annotations: looks.yaml\n",
        images=(),
        **{"labels.yaml": "x.png: dog\n", "looks.yaml": ""},
    )
    other_dataset.image("x.png", color=50)

    async def test(service: Any) -> None:
        findings, _ = await service.findings(dataset.source, validation_source=other_dataset.source)
        assert [(f.severity, f.rule, f.value) for f in findings] == [
            (ERROR, "unknown_in_training", "cow"),
            (WARNING, "unmatched_annotation_set", "looks"),
        ]

    run(test)


def test_the_same_names_in_another_order_and_missing_ones_are_fine(run: Any, dataset: Any, other_dataset: Any) -> None:
    dataset.write()
    for names in ("[dog, cat]", "[dog]"):
        metadata = f"task: multiclass classification\ncategories: {names}\nannotations: labels.yaml\n"
        other_dataset.write(metadata, images=(), **{"labels.yaml": "x.png: dog\n"})
        other_dataset.image("x.png", color=50)

        async def test(service: Any) -> None:
            findings, _ = await service.findings(dataset.source, validation_source=other_dataset.source)
            assert findings == []

        run(test)
