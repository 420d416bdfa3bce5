"""A conversion service of its own process, for tests of commands that talk to one."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.tokens import token

WAIT_SECONDS = 60.0


@cache
def key_file() -> Path:
    """The key of every service that a test process starts, and of the tokens that its commands carry."""
    folder = Path(tempfile.mkdtemp(prefix="sihlai-test-key-"))
    atexit.register(shutil.rmtree, folder)
    return folder / "token.pem"


@cache
def access() -> str:
    """A user's token, as SIHLAI_TOKEN holds it."""
    return token(key_file())


@contextlib.contextmanager
def conversion_process(place: Path, *, root: Path) -> Iterator[str]:
    """Its address. It keeps its files in `place`, and may read and write datasets in `root`."""
    file = place / "address"
    assert access()  # made first: the service reads the public half of its key
    words = (
        *("--address-file", file),
        *("--store-uri", (place / "store").as_uri()),
        *("--token-public-keys", key_file().with_name("token.pub.pem")),
        *("--allowed-roots", root),
        *("--allowed-destination-roots", root),
    )
    process = subprocess.Popen([sys.executable, "-m", "services.conversion", *map(str, words)])
    try:
        assert until(lambda: file.exists() or process.poll() is not None)
        assert process.poll() is None, "the conversion service has ended"
        yield file.read_text().strip()
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> bool:
    """Whether the condition held within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
