"""The demo's dataset."""

from pathlib import Path

import yaml

from services.cli.demo.digits import drawn, write_digits


def test_the_digits_are_a_dataset_in_the_native_format(tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "digits")
    metadata = yaml.safe_load((tmp_path / "digits" / "metadata.yaml").read_text())
    annotations = yaml.safe_load((tmp_path / "digits" / metadata["annotations"]).read_text())
    images = {path.name for path in (tmp_path / "digits" / "images").iterdir()}
    assert len(digits) == len(images) == 1797
    assert metadata["task"] == "multiclass classification"
    assert metadata["categories"] == [str(digit) for digit in range(10)]
    assert annotations.keys() == images
    assert set(annotations.values()) == set(metadata["categories"])
    assert drawn(digits[:2], [("0", 0.9), ("7", 0.5)]).renderables
