"""A folder in a file system that hangs: who waits does so for as long as he wants, and nobody else waits."""

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from services.chassis.auth.carrying import TokenFile
from services.chassis.errors import Reason, Unavailable
from services.chassis.objects import local
from services.chassis.objects.access import ObjectLimits
from services.chassis.objects.local import THREADS_MAX
from services.chassis.objects.store import open_store

SILENCE_SECONDS_MAX = 10.0
HANGS_SECONDS = 60.0
"""Unless a test is over before. What waits for it is far behind what a busy machine takes."""
DESCRIPTORS = Path("/proc/self/fd")


@contextlib.contextmanager
def hanging(folder, monkeypatch):
    """Calls of the system for what lies in this folder do not answer."""
    over = threading.Event()

    def held(call):
        def wait_and_call(path, *arguments, **options):
            if str(path).startswith(str(folder)):
                over.wait(HANGS_SECONDS)
            return call(path, *arguments, **options)

        return wait_and_call

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", held(os.stat))
        patched.setattr(os, "open", held(os.open))
        patched.setattr(local, "LocalStore", held(local.LocalStore))
        try:
            yield
        finally:
            over.set()


async def silence(until: asyncio.Event) -> float:
    """For how long the event loop stood still at most."""
    longest, before = 0.0, time.monotonic()
    while not until.is_set():
        await asyncio.sleep(0.01)
        now = time.monotonic()
        longest, before = max(longest, now - before), now
    return longest


async def listed(folder):
    return [found async for found in folder.list()]


CALLS = {
    "list": listed,
    "info": lambda folder: folder.info("a"),
    "read": lambda folder: folder.read("a"),
    "stream": lambda folder: anext(folder.stream("a")),
    "write": lambda folder: folder.write("b", b"content"),
    "delete": lambda folder: folder.delete("c"),
    "is_there": lambda folder: folder.is_there(),
}
CASES = [(name, users) for name in CALLS for users in (False, True) if not (users and name in ("write", "delete"))]
"""A user's folder is not written to."""


def opened(tmp_path, *, users, seconds=30.0):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_bytes(b"content")
    roots = [tmp_path] if users else None
    return open_store(
        (tmp_path / "data").as_uri(), allowed_roots=roots, limits=ObjectLimits(folder_seconds_max=seconds)
    )


@pytest.mark.parametrize(("name", "users"), CASES)
def test_a_callers_timeout_ends_his_wait_and_the_loop_goes_on(tmp_path, monkeypatch, name, users):
    folder = opened(tmp_path, users=users)

    async def test():
        done = asyncio.Event()
        silent = asyncio.create_task(silence(done))
        await asyncio.sleep(0.05)  # it has begun to measure
        with hanging(tmp_path / "data", monkeypatch):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await CALLS[name](folder)
            done.set()
            assert await silent < SILENCE_SECONDS_MAX
        await CALLS[name](folder)

    asyncio.run(test())


@pytest.mark.parametrize("users", [False, True])
def test_who_has_no_timeout_is_told_after_a_while_also_when_all_threads_hang(tmp_path, monkeypatch, users):
    folder = opened(tmp_path, users=users, seconds=0.2)

    async def test():
        assert await folder.read("a") == b"content"
        descriptors = len([*DESCRIPTORS.iterdir()])
        began = time.monotonic()
        with hanging(tmp_path / "data", monkeypatch):
            calls = [folder.read("a") for _ in range(2 * THREADS_MAX)]
            failures = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - began < HANGS_SECONDS
        assert {type(failure) for failure in failures} == {Unavailable}
        assert {failure.reason for failure in failures} == {Reason.OBJECT_STORE_UNAVAILABLE}
        assert failures[0].message == f"{folder.uri}/a cannot be reached: there was no answer within 0.2 s"
        assert await folder.read("a") == b"content"
        async with asyncio.timeout(60):
            while len([*DESCRIPTORS.iterdir()]) > descriptors:  # noqa: ASYNC110 — threads close them
                await asyncio.sleep(0.01)

    asyncio.run(test())


def test_who_writes_a_file_of_a_disk_that_hangs_is_told_and_the_loop_goes_on(tmp_path, monkeypatch):
    folder = opened(tmp_path, users=False, seconds=0.2)
    own = tmp_path / "own"
    own.mkdir()
    (own / "of-unknown-size").write_bytes(b"content")
    os.mkfifo(own / "of-unknown-content")

    async def test():
        done = asyncio.Event()
        silent = asyncio.create_task(silence(done))
        with pytest.raises(TimeoutError):
            await folder.write("b", own / "of-unknown-content")
        with hanging(own, monkeypatch), pytest.raises(TimeoutError):
            await folder.write("b", own / "of-unknown-size")
        done.set()
        assert await silent < SILENCE_SECONDS_MAX
        (own / "of-unknown-content").open("wb").close()  # lets go of who waits for it
        await folder.write("b", own / "of-unknown-size")
        assert await folder.read("b") == b"content"

    asyncio.run(test())


def test_who_calls_with_a_token_of_a_disk_that_hangs_sends_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "secrets" / "token"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text("first")
    token = TokenFile.required(path)

    async def test():
        done = asyncio.Event()
        silent = asyncio.create_task(silence(done))
        await asyncio.sleep(0.05)  # it has begun to measure
        with hanging(path.parent, monkeypatch):
            for _ in range(100):
                assert token() == "first"
            done.set()
            assert await silent < SILENCE_SECONDS_MAX
        path.write_text("second")
        until = time.monotonic() + 20
        while token() != "second":
            assert time.monotonic() < until
            await asyncio.sleep(0.01)

    asyncio.run(test())


def test_a_mount_that_hangs_takes_no_others_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MOUNT_PARTS", len(tmp_path.parts) + 1)
    hung = tmp_path / "hung"
    sound = next(
        folder
        for number in range(1_000)
        if local.folder_threads(folder := tmp_path / f"sound-{number}") is not local.folder_threads(hung)
    )
    for folder in (hung, sound):
        folder.mkdir()
        (folder / "a").write_bytes(b"content")

    async def test() -> None:
        stuck, works = open_store(hung.as_uri()), open_store(sound.as_uri())
        with hanging(hung, monkeypatch):
            waiting = [asyncio.create_task(stuck.read("a")) for _ in range(2 * THREADS_MAX)]
            await asyncio.sleep(0.1)
            async with asyncio.timeout(SILENCE_SECONDS_MAX):
                assert await works.read("a") == b"content"
            assert not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(test())


def test_a_folder_has_threads_whatever_its_name_holds():
    assert local.folder_threads(Path("/data/\ud800")) in local._THREADS
