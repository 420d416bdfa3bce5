"""Users' folders on this machine: nothing outside their bounds is read, whatever takes a file's place meanwhile."""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest

from services.chassis.errors import FailedPrecondition, PermissionDenied, SihlaiError
from services.chassis.objects.local import through
from services.chassis.objects.store import ObjectNotFound, open_store

SECRET = b"secret" * 10
READS = 100


@pytest.fixture
def users(tmp_path):
    """A user's folder with a file in it, beside a secret."""
    (tmp_path / "data/in").mkdir(parents=True)
    (tmp_path / "data/in/a").write_bytes(b"allowed")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/a").write_bytes(SECRET)
    return open_store(f"file://{tmp_path}/data", allowed_roots=[tmp_path / "data"])


@contextlib.contextmanager
def swapped(path: Path, target: Path):
    """While the block runs, what lies at `path` and a link to `target` take each other's place, as fast as they can."""
    link, real, over = path.with_name("link"), path.with_name("real"), threading.Event()
    path.rename(real)

    def swap():
        while not over.is_set():
            for each in (real, target):
                link.symlink_to(each)
                link.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_link_that_takes_a_files_place_is_never_read(users, tmp_path):
    async def test():
        read = refused = 0
        with swapped(tmp_path / "data/in/a", tmp_path / "secrets/a"):
            while not (read > READS and refused > READS):
                try:
                    assert await users.read("in/a") == b"allowed"
                    assert b"".join([part async for part in users.stream("in/a")]) == b"allowed"
                    assert (await users.info("in/a")).size_bytes == len(b"allowed")
                    with users.opened("in/a") as descriptor:
                        assert Path(through(descriptor)).read_bytes() == b"allowed"
                    read += 1
                except PermissionDenied:
                    refused += 1
                except ObjectNotFound:
                    pass

    asyncio.run(test())


def test_a_link_that_takes_a_folders_place_is_never_read_or_listed(users, tmp_path):
    (tmp_path / "secrets/more").write_bytes(SECRET)

    async def test():
        read = refused = 0
        with swapped(tmp_path / "data/in", tmp_path / "secrets"):
            while not (read > READS and refused > READS):
                try:
                    assert await users.read("in/a") == b"allowed"
                    assert {each.path for each in [part async for part in users.list("in")]} <= {"in/a"}
                    read += 1
                except (PermissionDenied, ObjectNotFound):
                    refused += 1

    asyncio.run(test())


def test_a_users_folder_reads_as_one_of_our_own(users, tmp_path):
    (tmp_path / "data/in/deep").mkdir()
    (tmp_path / "data/in/deep/ü b#c%20?.png").write_bytes(b"x" * 100)
    (tmp_path / "data/again").symlink_to("in/a")
    (tmp_path / "data/nowhere").symlink_to("gone")
    own = open_store(f"file://{tmp_path}/data")

    async def everything(folder):
        found = sorted([each async for each in folder.list()], key=lambda each: each.path)
        contents = [await folder.read(each.path, etag=each.etag) for each in found if each.path != "nowhere"]
        part = b"".join([each async for each in folder.stream("in/a", offset=3)])
        inner = folder.folder("in")
        return (
            [each for each in found if each.path != "nowhere"],
            contents,
            part,
            await inner.info("a"),
            [each.path async for each in inner.list("deep")],
            [await folder.exists(path) for path in ("in/a", "in", "none", "in/a/b", "again")],
        )

    assert asyncio.run(everything(users)) == asyncio.run(everything(own))


def test_what_leads_outside_is_listed_as_the_link_that_it_is(users, tmp_path):
    (tmp_path / "data/out").symlink_to(tmp_path / "secrets/a")
    (tmp_path / "data/folder").symlink_to(tmp_path / "secrets")

    async def test():
        found = {each.path: each.size_bytes async for each in users.list()}
        assert set(found) == {"in/a", "out", "folder"}
        assert found["out"] == len(os.fsencode(tmp_path / "secrets/a")), "the link's own"

    asyncio.run(test())


def test_links_lead_anywhere_within_the_folder_but_not_to_its_neighbour_in_the_same_roots(tmp_path):
    for name in ("one/images", "two"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one/a").write_bytes(b"a")
    (tmp_path / "two/b").write_bytes(b"b")
    (tmp_path / "one/images/a").symlink_to("../a")
    (tmp_path / "one/images/absolute").symlink_to(tmp_path / "one/a")
    (tmp_path / "one/images/b").symlink_to("../../two/b")
    images = open_store(f"file://{tmp_path}/one", allowed_roots=[tmp_path]).folder("images")
    assert asyncio.run(images.read("a")) == asyncio.run(images.read("absolute")) == b"a"
    with pytest.raises(PermissionDenied, match=r"one/images/b is a link to .*two/b, which lies outside"):
        asyncio.run(images.read("b"))


def test_of_nested_roots_and_closed_folders_the_innermost_decides(tmp_path):
    for name in ("data/keys", "data/store", "mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a").write_bytes(b"a")
    bounds = {"allowed_roots": [tmp_path, tmp_path / "data/store"], "closed_roots": [tmp_path / "data"]}
    for allowed in ("mine", "data/store"):
        assert asyncio.run(open_store(f"file://{tmp_path}/{allowed}", **bounds).read("a")) == b"a"
    for closed in ("data", "data/keys"):
        with pytest.raises(PermissionDenied, match="where the system keeps its own data"):
            open_store(f"file://{tmp_path}/{closed}", **bounds)
    with pytest.raises(PermissionDenied, match="where the system keeps its own data"):
        asyncio.run(open_store(f"file://{tmp_path}", **bounds).read("data/keys/a"))


def test_a_pipe_in_a_files_place_is_not_waited_for(users, tmp_path):
    os.mkfifo(tmp_path / "data/pipe")
    with pytest.raises(FailedPrecondition, match="no regular file"):
        asyncio.run(asyncio.wait_for(users.read("pipe"), 10))


def test_links_in_a_circle_are_nothing_that_is_there(users, tmp_path):
    (tmp_path / "data/x").symlink_to("y")
    (tmp_path / "data/y").symlink_to("x")
    with pytest.raises(ObjectNotFound):
        asyncio.run(users.read("x"))


def test_a_users_folder_is_never_changed(users, tmp_path):
    for act in (users.write("new", b""), users.write("in/a", b""), users.delete("in/a")):
        with pytest.raises(SihlaiError, match="not written to"):
            asyncio.run(act)
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == ["a", "in"]
