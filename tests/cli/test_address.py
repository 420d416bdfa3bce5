"""Addresses of one machine's servers: kept while they are free, and refused where nobody could listen."""

import socket
from pathlib import Path

import pytest

from services.cli.machine.address import AddressError, chosen_addresses, free_address, split_address


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:70000", ":1", "a b:1", "::1:80", "h:-1", ""])
def test_what_is_no_address_is_refused_with_what_one_is(text: str) -> None:
    with pytest.raises(AddressError, match=r"--listen-nats is .*, but must be HOST:PORT"):
        split_address(text, "--listen-nats")


def test_host_and_port_are_taken_apart() -> None:
    assert split_address("127.0.0.1:65535", "x") == ("127.0.0.1", 65_535)
    assert split_address("[::1]:80", "x") == ("[::1]", 80)


def test_a_host_that_is_not_here_is_an_error_that_names_it() -> None:
    with pytest.raises(AddressError, match=r"nothing can listen at 192\.0\.2\.1:0"):
        free_address("192.0.2.1:0")


def test_an_address_is_the_same_after_a_restart_unless_somebody_else_has_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    wanted = {"scheduler": "127.0.0.1:0", "metrics": "127.0.0.1:0", "nats": "127.0.0.1:4222"}
    first = chosen_addresses(wanted, kept)
    assert first["nats"] == "127.0.0.1:4222"
    assert len(set(first.values())) == 3
    with socket.create_server(split_address(first["metrics"], "it")):
        again = chosen_addresses(wanted, kept)
    assert again["metrics"] != first["metrics"]
    kept.write_text("torn{")
    assert len(chosen_addresses(wanted, kept)) == 3


def test_a_free_address_that_was_kept_is_taken_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    kept.write_text(f'{{"scheduler": "{address}"}}')
    assert chosen_addresses({"scheduler": "127.0.0.1:0"}, kept) == {"scheduler": address}


def test_no_two_servers_are_given_the_same_free_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may name a port again while nobody listens there: a demo once did not start for it."""
    named = iter(["127.0.0.1:5000", "127.0.0.1:5000", "127.0.0.1:5001"])
    monkeypatch.setattr("services.cli.machine.address.free_address", lambda _: next(named))
    wanted = {"conversion": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
    chosen = chosen_addresses(wanted, tmp_path / "kept.json")
    assert chosen == {"conversion": "127.0.0.1:5000", "metrics": "127.0.0.1:5001"}
