"""The collector of garbage rests while files are read, and works again afterwards, however many read at once."""

from __future__ import annotations

import gc
import threading

import pytest

from services.conversion.file.collector import collector_rests
from services.conversion.file.document import DocumentError, read_document


def test_it_rests_until_the_last_reader_has_left() -> None:
    inside, leave = threading.Barrier(2), threading.Event()

    def read() -> None:
        with collector_rests():
            inside.wait(60)
            leave.wait(60)

    other = threading.Thread(target=read)
    with collector_rests():
        other.start()
        inside.wait(60)
        assert not gc.isenabled()
    assert not gc.isenabled(), "somebody still reads"
    leave.set()
    other.join(60)
    assert gc.isenabled()


def test_a_file_that_is_wrong_leaves_it_on_and_who_had_it_off_keeps_it_off() -> None:
    with pytest.raises(DocumentError):
        read_document(b"{", "a.json")
    assert gc.isenabled()
    gc.disable()
    try:
        assert read_document(b"a: 1", "a.yaml").value == {"a": "1"}
        assert not gc.isenabled()
    finally:
        gc.enable()
