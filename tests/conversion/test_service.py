from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import ConversionServiceStub

from services.chassis.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Reason
from services.chassis.rpc import channel, error_from_rpc
from tests import tokens

TASKS = [number for number in task_pb2.Task.values() if number]


async def refused(call: Any) -> Any:
    try:
        async for _ in call:
            pass
    except TypeError:
        pass
    except grpc.RpcError as error:
        return error_from_rpc(error)
    try:
        await call
    except grpc.RpcError as error:
        return error_from_rpc(error)
    raise AssertionError("an error was expected")


def plan_request(start: int, end: int, **fields: Any) -> service_pb2.PlanConversionRequest:
    return service_pb2.PlanConversionRequest(from_task=start, to=end, **fields)  # type: ignore[arg-type]


def test_every_task_is_listed_with_its_format_and_its_edges(run: Any) -> None:
    async def test(service: Any) -> None:
        tasks = (await service.stub.ListTasks(service_pb2.ListTasksRequest())).tasks
        assert [each.task for each in tasks] == TASKS
        assert all(each.name and each.annotation_format for each in tasks)
        multiclass = tasks[0]
        assert (multiclass.name, list(multiclass.metadata_keys)) == (
            "multiclass classification",
            ["categories", "[ordered]"],
        )
        assert [step.to for step in multiclass.conversions] == [3, 2, 13, 14, 15]
        assert all(step.from_task == multiclass.task and step.rule for step in multiclass.conversions)

    run(test)


def test_tasks_come_in_pages(run: Any) -> None:
    async def test(service: Any) -> None:
        token, seen = "", []
        while True:
            page = await service.stub.ListTasks(service_pb2.ListTasksRequest(page_size=4, page_token=token))
            assert len(page.tasks) <= 4
            seen += [each.task for each in page.tasks]
            token = page.next_page_token
            if not token:
                break
        assert seen == TASKS
        error = await refused(service.stub.ListTasks(service_pb2.ListTasksRequest(page_size=-1)))
        assert error.violations[0].field == "page_size"
        for token in ("x", "0", "15", "-3", "9" * 50):
            error = await refused(service.stub.ListTasks(service_pb2.ListTasksRequest(page_token=token)))
            assert error.reason is Reason.INVALID_PAGE_TOKEN

    run(test)


def test_a_plan_between_tasks_tells_what_each_step_loses(run: Any) -> None:
    async def test(service: Any) -> None:
        answer = await service.stub.PlanConversion(plan_request(11, 2))
        assert [step.to for step in answer.steps] == [10, 2]
        assert all(step.losses and step.rule for step in answer.steps)
        assert answer.from_task == 11
        answer = await service.stub.PlanConversion(plan_request(11, 2, via=[6]))
        assert [step.to for step in answer.steps] == [9, 6, 2]
        assert list((await service.stub.PlanConversion(plan_request(7, 7))).steps) == []
        error = await refused(service.stub.PlanConversion(plan_request(2, 1)))
        assert isinstance(error, FailedPrecondition)
        assert error.reason is Reason.TASK_NOT_REACHABLE
        assert "anomaly detection" in error.metadata["reachable"]

    run(test)


def test_a_plan_from_a_dataset_starts_from_its_annotations(run: Any, dataset: Any) -> None:
    dataset.write(
        "- name: kind\n  task: multiclass classification\n  categories: [cat]\n  annotations: kind.yaml\n"
        "- name: parts\n  task: panoptic segmentation\n  annotations: parts/\n"
    )

    async def test(service: Any) -> None:
        request = service_pb2.PlanConversionRequest(source=dataset.source, to=2, annotation_set="parts")
        answer = await service.stub.PlanConversion(request)
        assert (answer.from_task, answer.annotation_set) == (11, "parts")
        assert [step.to for step in answer.steps] == [10, 2]
        request.annotation_set = ""
        error = await refused(service.stub.PlanConversion(request))
        assert error.violations[0].field == "annotation_set"

    run(test)


def test_a_plan_needs_no_images_to_be_read(run: Any, dataset: Any) -> None:
    dataset.write(images=())

    async def test(service: Any) -> None:
        request = service_pb2.PlanConversionRequest(source=dataset.source, to=3)
        assert len((await service.stub.PlanConversion(request)).steps) == 1
        assert not service.store.exists()

    run(test)


def test_all_that_is_wrong_with_a_request_is_said_at_once(run: Any) -> None:
    async def test(service: Any) -> None:
        options = service_pb2.ConversionOptions(
            steps=[
                service_pb2.ConversionOptions.StepOptions(),
                service_pb2.ConversionOptions.StepOptions(
                    semantic_to_multilabel=service_pb2.ConversionOptions.SemanticToMultilabel(min_pixels=0)
                ),
                service_pb2.ConversionOptions.StepOptions(
                    semantic_to_multilabel=service_pb2.ConversionOptions.SemanticToMultilabel()
                ),
                service_pb2.ConversionOptions.StepOptions(
                    keypoint_to_detection=service_pb2.ConversionOptions.KeypointToDetection(
                        min_size=float("nan"), category_name=""
                    )
                ),
            ]
        )
        source = dataset_pb2.DatasetSource(credentials=dataset_pb2.Credentials(s3=dataset_pb2.S3Key(access_key_id="a")))
        request = service_pb2.ConvertDatasetRequest(
            source=source, to=99, via=[0], options=options, request_id="not a uuid"
        )
        error = await refused(service.stub.ConvertDataset(request))
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == [
            "source.uri",
            "source.credentials.s3.secret_access_key",
            "to",
            "via[0]",
            "options.steps[0]",
            "options.steps[1].semantic_to_multilabel.min_pixels",
            "options.steps[2]",
            "options.steps[3].keypoint_to_detection.min_size",
            "options.steps[3].keypoint_to_detection.category_name",
            "request_id",
        ]
        error = await refused(service.stub.PlanConversion(service_pb2.PlanConversionRequest()))
        assert [violation.field for violation in error.violations] == ["start", "to"]

    run(test)


@pytest.mark.parametrize("wrapped", ["{%s}", "urn:uuid:%s", "%s ", "-%s", "{{{%s"])
def test_a_request_id_has_the_form_that_the_scheduler_takes(wrapped: str, run: Any) -> None:
    a_uuid = "6a1f9f38-97f7-4b6f-b1d2-7b1f0c3a1f10"

    async def test(service: Any) -> None:
        for call, kind in (
            (service.stub.ConvertDataset, service_pb2.ConvertDatasetRequest),
            (service.stub.ImportDataset, service_pb2.ImportDatasetRequest),
            (service.stub.ExportDataset, service_pb2.ExportDatasetRequest),
        ):
            wrong = {
                violation.field for violation in (await refused(call(kind(request_id=wrapped % a_uuid)))).violations
            }
            right = {violation.field for violation in (await refused(call(kind(request_id=a_uuid)))).violations}
            assert wrong - right == {"request_id"}

    run(test)


@pytest.mark.parametrize("uri", ["/folder", "http://host/x", "file://host/x", "file:///a/../b", "s3://"])
def test_what_is_no_uri_is_refused(uri: str, run: Any) -> None:
    async def test(service: Any) -> None:
        request = service_pb2.InspectDatasetRequest(source=dataset_pb2.DatasetSource(uri=uri))
        error = await refused(service.stub.InspectDataset(request))
        assert error.violations[0].field == "source.uri"

    run(test)


def test_nothing_outside_the_allowed_roots_and_hosts_is_opened(run: Any) -> None:
    async def test(service: Any) -> None:
        for source in (
            dataset_pb2.DatasetSource(uri="file:///etc"),
            dataset_pb2.DatasetSource(uri="s3://bucket", endpoint_url="http://127.0.0.1:1"),
        ):
            error = await refused(service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source)))
            assert isinstance(error, PermissionDenied)
            assert error.reason is Reason.URI_NOT_ALLOWED

    run(test)


def test_a_dataset_that_is_not_there_is_said_to_be_missing(run: Any, tmp_path: Path, dataset: Any) -> None:
    (tmp_path / "empty").mkdir()
    dataset.write(images=())

    async def test(service: Any) -> None:
        for path in (tmp_path / "nowhere", tmp_path / "empty", dataset.path):
            source = dataset_pb2.DatasetSource(uri=path.as_uri())
            error = await refused(service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=source)))
            assert isinstance(error, FailedPrecondition)
            assert error.reason is Reason.DATASET_NOT_FOUND
            assert error.metadata["uri"].startswith(path.as_uri())

    run(test)


def test_images_behind_a_link_out_of_the_dataset_are_not_read(run: Any, dataset: Any, other_dataset: Any) -> None:
    other_dataset.write()
    dataset.write(images=())
    (dataset.path / "images").rmdir()
    (dataset.path / "images").symlink_to(other_dataset.path / "images")

    async def test(service: Any) -> None:
        error = await refused(service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source)))
        assert error.reason is Reason.DATASET_INVALID

    run(test)


def test_an_inspection_tells_what_a_dataset_holds(run: Any, dataset: Any) -> None:
    dataset.write(
        "- name: kind\n  task: multiclass classification\n  categories: [cat, dog, cow]\n  annotations: kind.yaml\n"
        "- name: look\n  task: multilabel classification\n  labels: [red, round]\n  annotations: look/\n",
        **{
            "kind.yaml": "a.png: dog\nb.png: cat\nc.png: dog\nd.png: horse\n",
            "look/a.yaml": "[red, round]",
            "look/b.json": "[]",
        },
    )
    dataset.image("e.jpg", size=(7, 3))

    async def test(service: Any) -> None:
        answer = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))
        assert (answer.images, len(answer.fingerprint)) == (5, 64)
        assert answer.image_bytes == sum(path.stat().st_size for path in (dataset.path / "images").iterdir())
        assert [(size.width, size.height, size.images) for size in answer.sizes] == [(5, 4, 4), (7, 3, 1)]
        kind, look = answer.annotation_sets
        assert (kind.name, kind.task, kind.labelled_images, kind.negative_images, kind.unlabelled_images) == (
            "kind",
            1,
            3,
            0,
            2,
        )
        assert [(each.category, each.images) for each in kind.categories] == [("cat", 1), ("dog", 2), ("cow", 0)]
        assert (look.labelled_images, look.negative_images, look.unlabelled_images) == (1, 1, 3)
        assert [(each.category, each.annotations) for each in look.categories] == [("red", 1), ("round", 1)]
        assert [each.annotation_set for each in answer.reachable] == ["kind", "look"]
        assert next(iter(answer.reachable[0].tasks)) == 1
        assert set(answer.reachable[1].tasks) == {2, 13, 14, 15}

    run(test)


def test_inspecting_again_reads_no_image_again(run: Any, dataset: Any) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        first = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))
        (index,) = (service.store / "indices").iterdir()
        written = index.stat().st_ino  # its time is that of its last use
        second = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))
        assert first == second
        assert index.stat().st_ino == written

    run(test)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":1,"images":[["\xff"]]}', b'{"images":[[1]]}'])
def test_an_index_that_cannot_be_read_is_made_again(run: Any, dataset: Any, content: bytes) -> None:
    dataset.write()

    async def test(service: Any) -> None:
        first = await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))
        (index,) = (service.store / "indices").iterdir()
        whole = index.read_bytes()
        index.write_bytes(content)
        assert await service.stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source)) == first
        assert index.read_bytes() == whole

    run(test)


def test_the_process_starts_sweeps_serves_and_stops(dataset: Any, tmp_path: Path) -> None:
    dataset.write()
    left_behind = [tmp_path / "store/.draft-0", tmp_path / "store/datasets/0"]
    for folder in left_behind:
        folder.mkdir(parents=True)
        os.utime(folder, (1, 1))
    address_file = tmp_path / "address"
    arguments = [
        "--address-file",
        str(address_file),
        "--store-uri",
        (tmp_path / "store").as_uri(),
        "--allowed-roots",
        str(tmp_path),
        "--token-public-keys",
        str(tmp_path / "token.pub.pem"),
    ]
    token = tokens.token(tmp_path / "token.pem")
    command = [sys.executable, "-m", "services.conversion", *arguments]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    try:

        async def main() -> Any:
            async with asyncio.timeout(60):
                while not address_file.exists():
                    assert process.poll() is None, process.stderr
                    await asyncio.sleep(0.01)
                while any(folder.exists() for folder in left_behind):  # noqa: ASYNC110 — what is waited for has no event
                    await asyncio.sleep(0.01)
                async with channel(address_file.read_text().strip(), token=lambda: token) as open_channel:
                    stub = ConversionServiceStub(open_channel)
                    return await stub.InspectDataset(service_pb2.InspectDatasetRequest(source=dataset.source))

        assert asyncio.run(main()).images == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_wrong_setting_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.conversion", "--stor-uri", "x"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "--store-uri" in ended.stderr
    assert "Traceback" not in ended.stderr
