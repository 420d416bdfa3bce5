"""A whole system of real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from services.cli.machine.supervisor import Stack, StackConfig
from tests.system.client import Client

IMAGES = 300
UNHURRIED = {"start_seconds_max": 240.0, "service_stop_seconds": 60.0}
"""What processes may take on a machine that others use too, where nothing else is said of it."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 handwritten digits in the native format."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    (folder / "images").mkdir()
    annotations = {}
    for index, (pixels, digit) in enumerate(zip(data.images[:IMAGES], data.target[:IMAGES], strict=True)):
        name = f"{index:04}.png"
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(folder / "images" / name)
        annotations[name] = str(digit)
    metadata = {"task": "multiclass classification", "categories": [str(digit) for digit in range(10)]}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata | {"annotations": "annotations.yaml"}))
    (folder / "annotations.yaml").write_text(yaml.safe_dump(annotations))
    return folder


@pytest.fixture(scope="session")
def stack(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """nats-server, conversion, scheduler, metrics and a runner, each a process of its own."""
    config = StackConfig(data=tmp_path_factory.mktemp("stack"), allowed_roots=(digits,), device="cpu", **UNHURRIED)
    with Stack(config, environ=os.environ) as running:
        yield running
        assert running.stop() == (), "a process had to be killed, or was left behind"


@pytest.fixture
def client(stack: Stack, digits: Path) -> Client:
    return Client(stack=stack, digits=digits)
