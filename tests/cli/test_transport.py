"""Where the processes of `up` are reached, and what is refused before any of them starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.cli.machine.address import AddressError
from services.cli.machine.supervisor import Stack, StackConfig
from services.cli.machine.transport import Transport
from tests.certificates import Authority


@pytest.mark.parametrize(
    ("host", "listened", "reached", "announced"),
    [
        ("", "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"),
        ("", "0.0.0.0:1", "localhost:1", ":1"),
        ("", "[::]:1", "localhost:1", ":1"),
        ("", "10.0.0.7:1", "10.0.0.7:1", "10.0.0.7:1"),
        ("farm.example", "0.0.0.0:1", "farm.example:1", "farm.example:1"),
        ("farm.example", "10.0.0.7:1", "farm.example:1", "farm.example:1"),
        ("farm.example", "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"),
    ],
)
def test_each_is_reached_by_the_name_that_leads_to_it(host: str, listened: str, reached: str, announced: str) -> None:
    transport = Transport(host=host)
    assert (transport.reached(listened), transport.announced(listened)) == (reached, announced)


def test_what_other_machines_would_reach_without_tls_is_not_started(tmp_path: Path) -> None:
    config = StackConfig(data=tmp_path / "data", listen_metrics="0.0.0.0:0", runners=0)
    with pytest.raises(AddressError, match="--tls-certificate-file and --tls-key-file, or say --plaintext-allowed"):
        Stack(config, environ=os.environ).start()
    assert not (tmp_path / "data/logs").exists(), "no process was started"
    Transport(plaintext_allowed=True).check(["0.0.0.0:1"])


def test_half_of_the_files_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("up")
    files = {"certificate_file": certificate, "key_file": key, "ca_file": authority.file}
    Transport(**files).check(["0.0.0.0:1", "127.0.0.1:1"])
    for missing in files:
        with pytest.raises(AddressError, match="go together"):
            Transport(**{name: file for name, file in files.items() if name != missing}).check(["127.0.0.1:1"])
    key.chmod(0o644)
    with pytest.raises(AddressError, match="chmod 600"):
        Transport(**files).check(["127.0.0.1:1"])
