"""Threads for calls that may hang: nobody waits for them longer than they want, and no process does at its end."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time

import pytest

from services.chassis.threads import Threads

HANGS = """
import asyncio, threading
from services.chassis.threads import Threads

async def main():
    await Threads("t", threads_max=1, waiting_max=1).run(threading.Event().wait, seconds_max=0.1)

try:
    asyncio.run(main())
except TimeoutError as error:
    print(error)
"""


@pytest.fixture
def gate():
    """Holds up whoever waits for it until the test is over."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_call_answers_or_raises_as_it_would_by_itself():
    async def test():
        threads = Threads("t", threads_max=2, waiting_max=100)
        assert await threads.run(lambda: 5) == 5
        with pytest.raises(ValueError, match="its own"):
            await threads.run(lambda: int("its own"))
        with pytest.raises(TimeoutError, match="its own"):
            await threads.run(lambda: (_ for _ in ()).throw(TimeoutError("its own")), seconds_max=20)
        names = await asyncio.gather(*(threads.run(lambda: threading.current_thread().name) for _ in range(50)))
        assert set(names) <= {"t-1", "t-2"}

    asyncio.run(test())


def test_when_all_threads_hang_callers_wait_as_long_as_they_want_and_no_longer(gate):
    async def test():
        threads = Threads("t", threads_max=2, waiting_max=1)
        hung = [asyncio.create_task(threads.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
            await threads.run(lambda: 5, seconds_max=0.1)
        with pytest.raises(TimeoutError, match="1 calls wait for the threads of t already"):
            await threads.run(lambda: 5)
        assert time.monotonic() - began < 20
        gate.set()
        assert await asyncio.gather(*hung) == [True, True]
        assert await threads.run(lambda: 5) == 5

    asyncio.run(test())


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_entered_when_nobody_waits_any_more_is_left_again(gate, begun):
    left = threading.Event()
    steps = []

    @contextlib.contextmanager
    def slow():
        gate.wait()
        steps.append("entered")
        try:
            yield
        except TimeoutError:
            steps.append("left")
            raise
        finally:
            left.set()

    async def test():
        threads = Threads("t", threads_max=1, waiting_max=10)
        if not begun:
            hung = asyncio.create_task(threads.run(gate.wait))
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with threads.entered(slow(), seconds_max=0.1):
                raise AssertionError("it was entered")
        gate.set()
        if begun:
            await asyncio.to_thread(left.wait, 20)
        else:
            await hung
            await threads.run(lambda: None)  # what was given up before it began has not begun

    asyncio.run(test())
    assert steps == (["entered", "left"] if begun else [])


def test_a_process_ends_without_a_call_that_hangs():
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "there was no answer within 0.1 s\n"
