from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import InvalidArgument, NotFound, OutOfRange, Reason
from services.scheduler.objects.checkpoints import CheckpointManifest, CheckpointStore

JOB = "0c7a2d5e"


def write_checkpoint(
    root: Path, *, epoch: int = 3, iteration: int = 100, model: bytes = b"weights", **changes: Any
) -> Path:
    folder = root / JOB / str(epoch) / str(iteration)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(model)
    (folder / "config.json").write_bytes(b"{}")
    files = [
        {"name": path.name, "size_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    ]
    manifest = {
        "files": files,
        "epoch": epoch,
        "iteration": iteration,
        "cause": "STOP",
        "create_time_unix_us": 1_700_000_000_000_000,
        "selection_value": 0.5,
        "best": True,
    } | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def adopt(root: Path, epoch: int = 3) -> list[CheckpointManifest]:
    return asyncio.run(CheckpointStore(root.as_uri()).adopt(JOB, epoch))


async def download(store: CheckpointStore, uri: str, file: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in store.stream(uri, file, offset)])


def test_whole_checkpoints_of_an_attempt_are_adopted_in_the_order_of_iterations(tmp_path: Path) -> None:
    for iteration in (1000, 20, 100):
        write_checkpoint(tmp_path, iteration=iteration)
    write_checkpoint(tmp_path, epoch=4, iteration=5)
    found = adopt(tmp_path)
    assert [manifest.iteration for manifest in found] == [20, 100, 1000]
    assert {manifest.epoch for manifest in found} == {3}
    assert found[0].uri == f"{tmp_path.as_uri()}/{JOB}/3/20"
    assert [file.name for file in found[0].files] == ["config.json", "model.safetensors"]
    assert found[0].files[1].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (found[0].cause, found[0].selection_value, found[0].best) == ("STOP", 0.5, True)


def test_an_attempt_that_wrote_nothing_has_no_checkpoints(tmp_path: Path) -> None:
    assert adopt(tmp_path / "not-there-yet") == []


def test_a_checkpoint_without_a_manifest_is_not_adopted(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "manifest.json").unlink()
    assert adopt(tmp_path) == []


def test_a_checkpoint_with_a_missing_or_short_file_is_not_adopted(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, iteration=1) / "model.safetensors").unlink()
    (write_checkpoint(tmp_path, iteration=2) / "model.safetensors").write_bytes(b"weig")
    write_checkpoint(tmp_path, iteration=3)
    assert [manifest.iteration for manifest in adopt(tmp_path)] == [3]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"files": []}',
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"more":' + b"[" * 100_000,
        b"1" + b"0" * 5_000,
    ],
)
def test_a_damaged_manifest_costs_no_other_checkpoint(tmp_path: Path, content: bytes) -> None:
    damaged = write_checkpoint(tmp_path, iteration=20)
    write_checkpoint(tmp_path, iteration=100)
    (damaged / "manifest.json").write_bytes(content)
    assert [manifest.iteration for manifest in adopt(tmp_path)] == [100]


def one_file(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "model.safetensors", "size_bytes": 7, "sha256": "00"} | changes]


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "3"},
        {"epoch": -3},
        {"iteration": float("inf")},
        {"iteration": float("nan")},
        {"iteration": 20.0},
        {"iteration": -20},
        {"iteration": 10**400},
        {"cause": None},
        {"files": {}},
        {"files": []},
        {"files": one_file(name=7)},
        {"files": one_file(size_bytes=-7)},
        {"files": one_file(size_bytes=10**400)},
        {"files": one_file(sha256=[])},
        {"create_time_unix_us": float("inf")},
        {"cause": "\ud800"},
        {"selection_value": 10**400},
        {"selection_value": "0.5"},
        {"best": "false"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_manifest_with_another_value_costs_no_other_checkpoint(tmp_path: Path, changes: dict[str, Any]) -> None:
    change_manifest(write_checkpoint(tmp_path, iteration=20), **changes)
    write_checkpoint(tmp_path, iteration=100)
    assert [manifest.iteration for manifest in adopt(tmp_path)] == [100]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_selection_value_that_is_no_finite_number_costs_no_model(tmp_path: Path, value: float) -> None:
    write_checkpoint(tmp_path, selection_value=value)
    assert [(manifest.iteration, manifest.selection_value) for manifest in adopt(tmp_path)] == [(100, None)]


def test_a_checkpoint_whose_manifest_is_damaged_is_not_streamed(tmp_path: Path) -> None:
    change_manifest(write_checkpoint(tmp_path), selection_value=10**400)
    store = CheckpointStore(tmp_path.as_uri())
    with pytest.raises(NotFound) as raised:
        asyncio.run(download(store, f"{store.prefix(JOB, 3)}/100", "model.safetensors"))
    assert raised.value.reason is Reason.CHECKPOINT_NOT_FOUND


def change_manifest(folder: Path, **changes: Any) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_manifest_of_another_epoch_is_not_adopted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, epoch=2)
    folder.parent.rename(tmp_path / JOB / "3")
    assert adopt(tmp_path) == []


def test_folders_that_are_no_iteration_are_passed_over(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    for name in ("draft-100", "0100", "100.part"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "manifest.json").write_text((folder / "manifest.json").read_text())
    assert [manifest.iteration for manifest in adopt(tmp_path)] == [100]


def test_prefix_is_the_folder_that_adopt_looks_into(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    prefix = CheckpointStore(tmp_path.as_uri() + "/").prefix(JOB, 3)
    assert adopt(tmp_path)[0].uri == f"{prefix}/100"


def test_a_checkpoint_is_described_by_its_uri(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, selection_value=None, best=False)
    store = CheckpointStore(tmp_path.as_uri())
    manifest = asyncio.run(store.describe(f"{store.prefix(JOB, 3)}/100"))
    assert (manifest.iteration, manifest.selection_value, manifest.best) == (100, None, False)


def test_a_file_is_streamed_from_any_offset(tmp_path: Path) -> None:
    model = bytes(range(256)) * 9000
    write_checkpoint(tmp_path, model=model)
    store = CheckpointStore(tmp_path.as_uri())
    uri = f"{store.prefix(JOB, 3)}/100"
    assert asyncio.run(download(store, uri, "model.safetensors")) == model
    assert asyncio.run(download(store, uri, "model.safetensors", 1_234_567)) == model[1_234_567:]
    assert asyncio.run(download(store, uri, "model.safetensors", len(model))) == b""


def test_an_offset_beyond_the_end_is_out_of_range(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    store = CheckpointStore(tmp_path.as_uri())
    with pytest.raises(OutOfRange) as raised:
        asyncio.run(download(store, f"{store.prefix(JOB, 3)}/100", "model.safetensors", 8))
    assert raised.value.reason is Reason.OFFSET_BEYOND_END
    assert raised.value.metadata == {"offset": "8", "size_bytes": "7"}


def test_a_negative_offset_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    store = CheckpointStore(tmp_path.as_uri())
    with pytest.raises(InvalidArgument):
        asyncio.run(download(store, f"{store.prefix(JOB, 3)}/100", "model.safetensors", -1))


@pytest.mark.parametrize("file", ["manifest.json", "other", "", "../100/model.safetensors"])
def test_only_files_of_the_manifest_are_streamed(tmp_path: Path, file: str) -> None:
    write_checkpoint(tmp_path)
    store = CheckpointStore(tmp_path.as_uri())
    with pytest.raises(NotFound) as raised:
        asyncio.run(download(store, f"{store.prefix(JOB, 3)}/100", file))
    assert raised.value.reason is Reason.CHECKPOINT_NOT_FOUND


def test_nothing_outside_the_root_is_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "elsewhere")
    store = CheckpointStore((tmp_path / "root").as_uri())
    for uri in ((tmp_path / "elsewhere" / JOB / "3" / "100").as_uri(), store.prefix(JOB, 3) + "/7"):
        with pytest.raises(NotFound) as raised:
            asyncio.run(store.describe(uri))
        assert raised.value.reason is Reason.CHECKPOINT_NOT_FOUND
