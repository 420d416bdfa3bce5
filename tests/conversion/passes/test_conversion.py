from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import task_pb2

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason
from services.chassis.rpc import error_from_rpc

MULTICLASS = task_pb2.TASK_MULTICLASS_CLASSIFICATION
MULTILABEL = task_pb2.TASK_MULTILABEL_CLASSIFICATION
METRIC_LEARNING = task_pb2.TASK_METRIC_LEARNING
ANOMALY = task_pb2.TASK_ANOMALY_DETECTION
AUTOENCODING = task_pb2.TASK_AUTOENCODING
VIEW_INVARIANCE = task_pb2.TASK_VIEW_INVARIANCE_LEARNING


async def refused(call: Any) -> Any:
    try:
        await call
    except grpc.RpcError as error:
        return error_from_rpc(error)
    raise AssertionError("an error was expected")


async def until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 — what is waited for has no event
            await asyncio.sleep(0.005)


def test_a_dataset_of_the_same_task_is_normalised(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTICLASS)
        content = service.converted(result)
        assert set(content) == {"metadata", "annotations", "index", "report"}
        assert content["metadata"] == {
            "task": "multiclass classification",
            "categories": ["cat", "dog"],
            "images": f"{dataset.path.as_uri()}/images",
            "annotations": "annotations.json",
        }
        assert content["annotations"] == {"a.png": "cat", "b.png": "dog", "c.png": "dog", "d.png": None}
        entry = content["index"]["images"][0]
        size_bytes = (dataset.path / "images/a.png").stat().st_size
        assert {key: entry[key] for key in ("name", "bytes", "width", "height", "orientation")} == {
            "name": "a.png",
            "bytes": size_bytes,
            "width": 5,
            "height": 4,
            "orientation": 1,
        }
        assert content["index"]["fingerprint"] == result.source_fingerprint
        assert (result.images_in, result.labelled_in, result.labelled_out) == (4, 3, 3)
        assert (result.annotations_in, result.annotations_out, list(result.steps)) == (3, 3, [])
        assert not result.reused

    run(test)


@pytest.mark.parametrize(
    ("end", "vocabulary", "annotations"),
    [
        (MULTILABEL, {"labels": ["cat", "dog"]}, [["cat"], ["dog"], ["dog"], None]),
        (METRIC_LEARNING, {"identities": ["cat", "dog"]}, ["cat", "dog", "dog", None]),
        (AUTOENCODING, {}, [None] * 4),
        (VIEW_INVARIANCE, {}, [None] * 4),
        (ANOMALY, {}, [None] * 4),
    ],
)
def test_every_edge_of_multiclass_classification(
    end: int, vocabulary: Any, annotations: list[Any], run: Any, dataset: Any
) -> None:
    dataset.write("task: multiclass classification\nordered: true\ncategories: [cat, dog]\nannotations: labels.yaml\n")

    async def test(service: Any) -> None:
        content = service.converted(await service.convert(dataset.source, end))
        metadata = content["metadata"]
        assert {key: metadata[key] for key in metadata if key not in ("task", "images", "annotations")} == vocabulary
        assert list(content["annotations"].values()) == annotations

    run(test)


def test_order_of_categories_stays_where_the_task_does(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: multiclass classification\nordered: yes it is\n".replace("yes it is", "true")
        + "categories: [dog, cat]\nannotations: labels.yaml\n"
    )

    async def test(service: Any) -> None:
        metadata = service.converted(await service.convert(dataset.source, MULTICLASS))["metadata"]
        assert (metadata["categories"], metadata["ordered"]) == (["dog", "cat"], True)

    run(test)


def test_identities_become_labels_in_two_steps(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: metric learning\nidentities: [007, no]\nannotations: labels.json\n",
        **{"labels.json": '{"a.png": "007", "b.png": null, "c.png": "no"}'},
    )

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        assert [step.to for step in result.steps] == [MULTICLASS, MULTILABEL]
        content = service.converted(result)
        assert content["metadata"]["labels"] == ["007", "no"]
        assert list(content["annotations"].values()) == [["007"], None, ["no"], None]

    run(test)


def test_the_three_states_stay_apart(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: multilabel classification\nlabels: [red, round]\nannotations: labels.yaml\n",
        **{"labels.yaml": "a.png: []\nb.png: null\nc.png: [round, red]\n"},
    )

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL)
        assert service.converted(result)["annotations"] == {
            "a.png": [],
            "b.png": None,
            "c.png": ["round", "red"],
            "d.png": None,
        }
        assert (result.labelled_in, result.labelled_out, result.annotations_out) == (2, 2, 2)

    run(test)


def test_multiclass_there_and_back_is_the_identity(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        straight = service.converted(await service.convert(dataset.source, MULTICLASS))
        around = service.converted(await service.convert(dataset.source, MULTICLASS, via=[METRIC_LEARNING]))
        assert around["annotations"] == straight["annotations"]
        assert around["metadata"] == straight["metadata"]

    run(test)


def test_a_converted_dataset_can_be_converted_again(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        labels = await service.convert(dataset.source, METRIC_LEARNING)
        again = await service.convert(labels.dataset, MULTILABEL)
        assert service.converted(again)["metadata"]["images"] == f"{dataset.path.as_uri()}/images"
        straight = await service.convert(dataset.source, MULTILABEL)
        assert service.converted(again)["annotations"] == service.converted(straight)["annotations"]

    run(test)


def test_a_folder_of_images_alone_can_be_learned_from(run: Any, dataset: Any) -> None:
    dataset.write(None, **{"readme.txt": "no metadata"})

    async def test(service: Any) -> None:
        for end in (AUTOENCODING, VIEW_INVARIANCE, ANOMALY):
            result = await service.convert(dataset.source, end)
            assert (result.images_in, result.labelled_in) == (4, 0)
        error = await refused(service.convert(dataset.source, MULTICLASS))
        assert error.reason is Reason.TASK_NOT_REACHABLE

    run(test)


def test_anomalies_may_be_labelled(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: anomaly detection\nannotations: labels.yaml\n",
        **{"labels.yaml": "a.png: normal\nb.png: anomalous\nc.png: odd\n"},
    )

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, ANOMALY, lenient=True)
        assert list(service.converted(result)["annotations"].values()) == ["normal", "anomalous", None, None]

    run(test)


def test_images_may_lie_elsewhere(run: Any, dataset: Any, other_dataset: Any) -> None:
    other_dataset.write()
    dataset.write(
        f"task: multiclass classification\ncategories: [cat, dog]\nannotations: labels.yaml\n"
        f"images: {other_dataset.path.as_uri()}/images/\n",
        images=(),
    )

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTICLASS)
        assert service.converted(result)["metadata"]["images"] == f"{other_dataset.path.as_uri()}/images"
        assert result.images_in == 4

    run(test)


def test_images_elsewhere_stay_within_the_allowed_roots(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: multiclass classification\ncategories: [cat, dog]\nannotations: labels.yaml\nimages: file:///etc\n"
    )

    async def test(service: Any) -> None:
        error = await refused(service.convert(dataset.source, MULTICLASS))
        assert error.reason is Reason.URI_NOT_ALLOWED

    run(test)


def test_a_repeat_returns_what_is_there(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        first = await service.convert(dataset.source, MULTILABEL, request_id="6a1f9f38-97f7-4b6f-b1d2-7b1f0c3a1f10")
        path = Path(first.dataset.uri.removeprefix("file://")) / "annotations.json"
        written = path.stat().st_mtime_ns
        second = await service.convert(dataset.source, MULTILABEL, request_id="6a1f9f38-97f7-4b6f-b1d2-7b1f0c3a1f10")
        assert (first.reused, second.reused) == (False, True)
        assert path.stat().st_mtime_ns == written
        second.reused = False
        assert second == first
        third = await service.convert(dataset.source, MULTICLASS, request_id="6a1f9f38-97f7-4b6f-b1d2-7b1f0c3a1f10")
        assert not third.reused, "another request under this id is work of its own, as the proto says"

    run(test)
    run(lambda service: again(service, dataset))


async def again(service: Any, dataset: Any) -> None:
    assert (await service.convert(dataset.source, MULTILABEL)).reused


def test_a_converted_dataset_whose_report_cannot_be_read_is_made_again(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        first = await service.convert(dataset.source, MULTILABEL)
        report = Path(first.dataset.uri.removeprefix("file://")) / "report.json"
        whole = report.read_bytes()
        report.write_bytes(whole[:-9])
        second = await service.convert(dataset.source, MULTILABEL)
        assert (second, report.read_bytes()) == (first, whole)

    run(test)


def test_two_at_once_do_the_work_once(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        results = await asyncio.gather(*(service.convert(dataset.source, MULTILABEL) for _ in range(8)))
        assert len({result.dataset.uri for result in results}) == 1
        assert len(service.announced) == 1
        digest, uri, images = service.announced[0]
        assert (uri, images) == (results[0].dataset.uri, 4)
        assert uri.endswith(digest)

    run(test)


def test_the_result_is_another_one_where_anything_that_matters_is(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        uris = [(await service.convert(dataset.source, MULTICLASS)).dataset.uri]
        uris.append((await service.convert(dataset.source, MULTICLASS, lenient=True)).dataset.uri)
        uris.append((await service.convert(dataset.source, MULTICLASS, via=[METRIC_LEARNING])).dataset.uri)
        uris.append((await service.convert(dataset.source, AUTOENCODING)).dataset.uri)
        dataset.text("labels.yaml", "a.png: dog\n")
        uris.append((await service.convert(dataset.source, MULTICLASS)).dataset.uri)
        dataset.image("a.png", color=77)
        uris.append((await service.convert(dataset.source, MULTICLASS)).dataset.uri)
        assert len(set(uris)) == len(uris)

    run(test)


def test_strict_refuses_with_the_first_findings_and_writes_nothing(run: Any, dataset: Any) -> None:
    dataset.write(
        **{"labels.yaml": "a.png: cow\nb.png: []\nc.png: cat\n" + "".join(f"{n}.png: cat\n" for n in range(9))}
    )

    async def test(service: Any) -> None:
        error = await refused(service.convert(dataset.source, MULTICLASS))
        assert isinstance(error, FailedPrecondition)
        assert error.reason is Reason.DATASET_INVALID
        assert error.metadata["errors"] == "11"
        assert error.metadata["finding_1"].startswith("labels.yaml:1: the category 'cow' is not declared")
        assert "and 8 more" in error.message
        assert [path.name for path in service.store.iterdir()] == ["indices"]

    run(test)


def test_lenient_drops_and_counts(run: Any, dataset: Any) -> None:
    dataset.write(
        "task: multilabel classification\nlabels: [red, round, red]\nannotations: labels.yaml\n",
        **{
            "labels.yaml": "a.png: [red, blue]\nb.png: [blue, green]\nc.png: []\nd.png: [round]\n"
            "e.png: [red]\nz.png: [red]\nc.png: [red]\n"
        },
        images=("a.png", "b.png", "c.png", "d.png"),
    )
    (dataset.path / "images/e.png").write_bytes(b"broken")

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTILABEL, lenient=True)
        content = service.converted(result)
        # All of b's labels were bad: nothing is known of it. c stands twice: neither can be trusted.
        assert content["annotations"] == {"a.png": ["red"], "b.png": None, "c.png": None, "d.png": ["round"]}
        assert [entry["name"] for entry in content["index"]["images"]] == ["a.png", "b.png", "c.png", "d.png"]
        dropped = {each.rule: (each.annotations, each.images) for each in result.dropped}
        assert dropped == {
            "undeclared_category": (3, 2),
            "repeated_key": (1, 1),
            "annotation_without_image": (1, 1),
            "unreadable_image": (1, 1),
        }
        assert (result.images_in, result.labelled_in, result.labelled_out) == (5, 4, 2)
        assert (result.annotations_in, result.annotations_out) == (8, 2)
        actions = {finding["rule"]: finding["action"] for finding in content["report"]["findings"]}
        assert set(actions.values()) == {"dropped"}

    run(test)


def test_lenient_refuses_what_cannot_be_understood(run: Any, dataset: Any) -> None:
    dataset.write(**{"labels.yaml": "a.png: ["})

    async def test(service: Any) -> None:
        error = await refused(service.convert(dataset.source, MULTICLASS, lenient=True))
        assert error.reason is Reason.DATASET_INVALID

    run(test)


def test_a_dataset_that_changed_is_refused_where_a_fingerprint_is_given(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        first = await service.convert(dataset.source, MULTICLASS)
        recorded = first.source_fingerprint
        assert (await service.convert(dataset.source, MULTICLASS, fingerprint=recorded)).reused
        dataset.text("labels.yaml", "a.png: dog\n")
        error = await refused(service.convert(dataset.source, MULTICLASS, fingerprint=recorded))
        assert error.reason is Reason.DATASET_CHANGED
        assert error.metadata["recorded"] == recorded
        assert error.metadata["found"] != recorded

    run(test)


def test_the_fingerprint_is_that_of_the_content(run: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        async def fingerprint(path: Path) -> str:
            source = type(dataset)(path).source
            answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source))
            return str(answer.fingerprint)

        first = await fingerprint(dataset.path)
        os.utime(dataset.path / "images/a.png", (1, 1))
        os.utime(dataset.path / "labels.yaml", (1, 1))
        assert await fingerprint(dataset.path) == first
        shutil.copytree(dataset.path, tmp_path / "copy")
        assert await fingerprint(tmp_path / "copy") == first
        (tmp_path / "copy/images/d.png").unlink()
        fewer = await fingerprint(tmp_path / "copy")
        (tmp_path / "copy/images/d.png").write_bytes(b"broken")
        broken = await fingerprint(tmp_path / "copy")
        assert len({first, fewer, broken}) == 3

    run(test)


def test_one_of_several_annotation_sets_is_chosen_by_name(run: Any, dataset: Any) -> None:
    dataset.write(
        "- name: kind\n  task: multiclass classification\n  categories: [cat]\n  annotations: kind.yaml\n"
        "- name: look\n  task: multilabel classification\n  labels: [red]\n  annotations: look.yaml\n"
        "- name: boxes\n  task: object detection\n  categories: [cat]\n  annotations: boxes/\n",
        **{"kind.yaml": "a.png: cat\n", "look.yaml": "a.png: [red, blue]\n", "boxes/a.yaml": "[]"},
    )

    async def test(service: Any) -> None:
        result = await service.convert(dataset.source, MULTICLASS, annotation_set="kind")
        assert service.converted(result)["annotations"]["a.png"] == "cat"
        error = await refused(service.convert(dataset.source, MULTILABEL, annotation_set="look"))
        assert error.reason is Reason.DATASET_INVALID
        for name in ("", "hue"):
            error = await refused(service.convert(dataset.source, MULTILABEL, annotation_set=name))
            assert isinstance(error, InvalidArgument)
            assert error.violations[0].field == "annotation_set"
            assert "'kind', 'look', 'boxes'" in error.violations[0].description
        result = await service.convert(dataset.source, MULTILABEL, annotation_set="boxes")
        assert service.converted(result)["annotations"] == {"a.png": [], "b.png": None, "c.png": None, "d.png": None}

    run(test)


def test_a_cancelled_conversion_stops_and_the_next_one_takes_it_up(run: Any, dataset: Any) -> None:
    names = tuple(f"{number:03}.png" for number in range(400))
    dataset.write(images=names, **{"labels.yaml": "".join(f"{name}: cat\n" for name in names)})

    async def test(service: Any) -> None:
        request = service_pb2.ConvertDatasetRequest(source=dataset.source, to=MULTICLASS)
        call = service.stub.ConvertDataset(request)
        async for message in call:
            if message.progress.done > 0:
                break
        assert message.progress.phase == "index"
        assert message.progress.total == 400
        call.cancel()
        await until(lambda: not working())
        assert not list(service.store.glob("datasets/*"))
        assert not list(service.store.glob(".draft-*"))
        first = [message async for message in service.stub.ConvertDataset(request)]
        begun = next(m.progress.done for m in first if m.progress.phase == "index")
        assert begun > 0
        assert first[-1].result.labelled_out == 400

    run(test, requests_max=1, threads_max=1, progress_seconds=0.001)


def working() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("work ")]


def test_one_caller_that_leaves_does_not_stop_the_other(run: Any, dataset: Any) -> None:
    names = tuple(f"{number:03}.png" for number in range(200))
    dataset.write(images=names, **{"labels.yaml": "000.png: cat\n"})

    async def test(service: Any) -> None:
        request = service_pb2.ConvertDatasetRequest(source=dataset.source, to=MULTICLASS)
        leaving, staying = service.stub.ConvertDataset(request), service.stub.ConvertDataset(request)
        messages = aiter(staying)
        await asyncio.gather(anext(aiter(leaving)), anext(messages))
        leaving.cancel()
        rest = [message async for message in messages]
        assert rest[-1].result.images_in == 200

    run(test, requests_max=1, threads_max=1, progress_seconds=0.001)


def test_a_server_that_stops_ends_the_stream_with_unavailable(run: Any, dataset: Any) -> None:
    names = tuple(f"{number:03}.png" for number in range(300))
    dataset.write(images=names, **{"labels.yaml": "000.png: cat\n"})

    async def test(service: Any) -> None:
        call = service.stub.ConvertDataset(service_pb2.ConvertDatasetRequest(source=dataset.source, to=MULTICLASS))
        messages = aiter(call)
        await anext(messages)
        service.server.stopping.set()

        async def rest() -> None:
            async for _ in messages:
                pass

        error = await refused(rest())
        assert error.reason is Reason.SERVER_STOPPING
        await until(lambda: not working())

    run(test, requests_max=1, threads_max=1, progress_seconds=0.001)


def test_calls_beyond_the_queue_are_sent_away(run: Any, dataset: Any, other_dataset: Any) -> None:
    names = tuple(f"{number:03}.png" for number in range(300))
    dataset.write(images=names, **{"labels.yaml": "000.png: cat\n"})
    other_dataset.write()

    async def test(service: Any) -> None:
        call = service.stub.ConvertDataset(service_pb2.ConvertDatasetRequest(source=dataset.source, to=MULTICLASS))
        await anext(aiter(call))
        error = await refused(service.convert(other_dataset.source, MULTICLASS))
        assert error.reason is Reason.LIMIT_REACHED
        assert error.metadata["what"] == "works_waiting_max"
        call.cancel()

    run(test, requests_max=1, threads_max=1, works_running_max=1, works_waiting_max=0, progress_seconds=0.001)


def test_a_converted_dataset_is_whole_json_with_names_as_they_are(run: Any, dataset: Any) -> None:
    names = ("ä b.png", "x#1.png", "d%20e.png", "'q'.png")
    dataset.write(images=names, **{"labels.yaml": json.dumps(dict.fromkeys(names, "cat"), ensure_ascii=False)})

    async def test(service: Any) -> None:
        annotations = service.converted(await service.convert(dataset.source, MULTICLASS))["annotations"]
        assert annotations == dict.fromkeys(names, "cat")

    run(test)


def test_a_result_tells_its_first_findings_also_when_it_is_found_again(run: Any, dataset: Any) -> None:
    dataset.write(**{"labels.yaml": "a.png: cat\nb.png: dgo\nc.png: dog\nd.png:\n"})

    async def test(service: Any) -> None:
        for reused in (False, True):
            result = await service.convert(dataset.source, task_pb2.TASK_MULTILABEL_CLASSIFICATION, lenient=True)
            assert result.reused == reused
            assert [(each.rule, each.image, each.line) for each in result.findings] == [
                ("undeclared_category", "b.png", 2)
            ]

    run(test)
