from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.chassis.errors import FailedPrecondition, Reason, Unavailable
from services.conversion.store.draft import JOURNAL, LOCK, PREFIX, Drafts

ROOT = Path(__file__).parents[3]
HOLDER = """
import asyncio, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from services.conversion.store.draft import Drafts

async def main():
    with ThreadPoolExecutor(1) as executor:
        async with Drafts(Path(sys.argv[1]), hours_max=1).taken("key", executor) as draft:
            (draft.journal / "1").write_text("done")
            print(draft.folder.name, flush=True)
            time.sleep(600)

asyncio.run(main())
"""


async def interrupted(drafts: Drafts, error: BaseException | None) -> Path:
    """The folder of a draft of `key`, in which something was done before that error."""
    with ThreadPoolExecutor(1) as executor, contextlib.suppress(type(error) if error is not None else (), Unavailable):
        async with drafts.taken("key", executor) as draft:
            (draft.journal / "1").write_text("done")
            (draft.dataset / "half").write_text("half")
            if error is not None:
                raise error
    return draft.folder


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (asyncio.CancelledError(), True),
        (Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, "away"), True),
        (FailedPrecondition(Reason.DATASET_INVALID, "bad"), False),
        (ZeroDivisionError(), False),
        (OSError(28, "No space left on device"), False),
        (None, False),
    ],
)
def test_what_was_interrupted_and_may_be_repeated_is_kept(
    error: BaseException | None, kept: bool, tmp_path: Path
) -> None:
    drafts = Drafts(tmp_path / "drafts", hours_max=1)

    async def main() -> None:
        folder = await interrupted(drafts, error)
        assert folder.exists() == kept
        with ThreadPoolExecutor(1) as executor:
            async with drafts.taken("key", executor) as draft:
                assert draft.folder == folder
                assert [path.name for path in draft.journal.iterdir()] == ["1"] * kept
                assert list(draft.dataset.iterdir()) == []

    asyncio.run(main())


def test_two_calls_at_once_have_drafts_of_their_own(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path, hours_max=1)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            async with drafts.taken("key", executor) as first:
                (first.journal / "1").write_text("done")
                with contextlib.suppress(asyncio.CancelledError):
                    async with drafts.taken("key", executor) as second:
                        assert first.folder != second.folder
                        assert list(second.journal.iterdir()) == []
                        raise asyncio.CancelledError
                assert not second.folder.exists()  # nobody would ever find it
                assert first.folder.exists()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_another_process_has_a_draft_of_its_own_until_the_first_one_dies(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path, hours_max=1)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        held = process.stdout.readline().strip()
        assert held == f"{PREFIX}key"

        async def taken() -> tuple[str, list[str]]:
            with ThreadPoolExecutor(1) as executor:
                async with drafts.taken("key", executor) as draft:
                    return draft.folder.name, [path.name for path in draft.journal.iterdir()]

        name, journal = asyncio.run(taken())
        assert name.startswith(f"{held}-")
        assert journal == []
        process.kill()
        process.wait(20)
        assert asyncio.run(taken()) == (held, ["1"])
    finally:
        process.kill()
        process.communicate()


def test_drafts_that_nobody_takes_up_are_swept_but_not_those_in_work(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path, hours_max=1)

    def age(folder: Path) -> None:
        for path in (folder / JOURNAL, folder / LOCK, folder):
            if path.exists():
                os.utime(path, (1, 1))

    async def main() -> None:
        folder = await interrupted(drafts, asyncio.CancelledError())
        assert drafts.sweep() == 0
        age(folder)
        with ThreadPoolExecutor(1) as executor:
            async with drafts.taken("other", executor) as draft:
                age(draft.folder)
                assert drafts.sweep() == 1
                assert draft.folder.exists()
        assert not folder.exists()

    asyncio.run(main())
    (tmp_path / f"{PREFIX}of-an-older-version").mkdir()
    age(tmp_path / f"{PREFIX}of-an-older-version")
    assert drafts.sweep() == 1
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_cannot_be_written_to_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            with pytest.raises(Unavailable, match="cannot be written"):
                await Drafts(tmp_path / "file", hours_max=1).taken("key", executor).__aenter__()
            with pytest.raises(Unavailable, match="No space left on device"):
                async with Drafts(tmp_path / "drafts", hours_max=1).taken("key", executor):
                    raise OSError(28, "No space left on device")

    asyncio.run(main())
    assert list((tmp_path / "drafts").iterdir()) == []
