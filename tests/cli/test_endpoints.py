"""Where the services are looked for, and who holds a data folder."""

from pathlib import Path

import pytest

from services.cli.endpoints import NoEndpointError, default_data_folder, resolve
from services.cli.folder import DataFolder, FolderInUseError, held, write_endpoints


def test_a_flag_wins_over_the_environment_and_that_over_the_data_folder(tmp_path: Path) -> None:
    found = {"scheduler": "file:1", "metrics": "file:2", "conversion": "file:3"}
    write_endpoints(DataFolder(root=tmp_path), found)
    flags = {"scheduler": "flag:1", "metrics": None, "conversion": None}
    environ = {"SIHLAI_SCHEDULER_ADDRESS": "environment:1", "SIHLAI_METRICS_ADDRESS": "environment:2"}
    endpoints = resolve(flags=flags, data=tmp_path, environ=environ)
    assert endpoints.addresses == {"scheduler": "flag:1", "metrics": "environment:2", "conversion": "file:3"}


def test_a_service_that_nobody_named_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    endpoints = resolve(flags={"scheduler": None}, data=tmp_path, environ={})
    with pytest.raises(NoEndpointError, match=r"sihlai up.*--scheduler.*SIHLAI_SCHEDULER_ADDRESS"):
        endpoints.address("scheduler")


def test_the_default_data_folder_follows_the_environment(tmp_path: Path) -> None:
    assert default_data_folder({"SIHLAI_DATA": str(tmp_path)}) == tmp_path
    assert default_data_folder({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "sihlai"


def test_a_held_data_folder_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    folder = DataFolder(root=tmp_path)
    with held(folder), pytest.raises(FolderInUseError, match=r"in use by process \d+"), held(folder):
        pass
    with held(folder):
        pass
