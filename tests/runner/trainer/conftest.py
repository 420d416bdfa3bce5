"""Small datasets and trainings for the trainer's tests. A training writes its reports to a real descriptor."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from PIL import Image
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from runner.report import Ended, Points, Report, ReportWriter, read_reports
from runner.train import run
from runner.trainer.commands import Commands
from runner.trainer.config import TrainerConfig
from runner.trainer.reporter import Reporter
from services.scheduler.specification import complete, violations

CATEGORIES = ("left", "right", "top", "bottom")
SIZE_PIXELS = 16


def picture(category: str, seed: int) -> Image.Image:
    """Noise with a brighter half where the category says."""
    pixels = torch.rand(SIZE_PIXELS, SIZE_PIXELS, generator=torch.Generator().manual_seed(seed)) * 120
    half = SIZE_PIXELS // 2
    rows = {"top": slice(half), "bottom": slice(half, None)}.get(category, slice(None))
    columns = {"left": slice(half), "right": slice(half, None)}.get(category, slice(None))
    pixels[rows, columns] += 100
    return Image.frombytes("L", (SIZE_PIXELS, SIZE_PIXELS), pixels.to(torch.uint8).numpy().tobytes())


def spec_from(**changes: Any) -> JobSpec:
    """A complete specification of a tiny job; changes are its messages, such as `trainer={"seed": 1}`."""
    given: dict[str, Any] = {
        "model": {"backbone": {"name": "tiny"}, "heads": [{"id": "side", "task": "TASK_MULTICLASS_CLASSIFICATION"}]},
        "data": {"height": SIZE_PIXELS, "width": SIZE_PIXELS},
        "trainer": {"iterations_max": 8, "validations": 1, "batch_size": 8, "adamw": {"learning_rate": 0.003}},
    }
    for part, change in changes.items():
        given[part] = {**given[part], **change}
    spec = complete(json_format.ParseDict(given, JobSpec()))
    assert not violations(spec)
    return spec


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training reported."""

    reports: list[Report]
    checkpoint_folder: Path

    @property
    def ended(self) -> Ended:
        last = self.reports[-1]
        assert isinstance(last, Ended)
        return last

    def of(self, kind: type) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    def series(self, name: str) -> dict[int, float]:
        """The values of a series without a context, by step."""
        return {
            report.step: report.values[name]
            for report in self.of(Points)
            if name in report.values and not report.context
        }

    @property
    def lines(self) -> str:
        return "\n".join(report.text for report in self.reports if hasattr(report, "text"))


class Telling(ReportWriter):
    """Asks about each report once it is written: a wish comes at the step that it is meant for, however late it is."""

    def __init__(self, file_descriptor: int, tell: Callable[[Report], str | None], commands: Commands) -> None:
        super().__init__(file_descriptor)
        self._tell = tell
        self._commands = commands

    def write(self, report: Report) -> None:
        super().write(report)
        if wish := self._tell(report):
            self._commands.wish = wish


@dataclass(kw_only=True)
class Workshop:
    """A folder with a dataset and attempts in it."""

    folder: Path
    attempts: int = 0
    heads: dict[str, Path] = field(default_factory=dict)

    def write_dataset(
        self,
        annotations: Mapping[str, Mapping[str, Any]],
        name: str = "training",
        categories: tuple[str, ...] = CATEGORIES,
    ) -> dict[str, Any]:
        """Write images and annotations by head; the dataset's part of attempt.json.

        An image looks like its first annotation; one that is of no category is not written.
        """
        dataset = self.folder / name
        (dataset / "images").mkdir(parents=True)
        for head_id, by_image in annotations.items():
            folder = dataset / "heads" / head_id
            folder.mkdir(parents=True)
            metadata = {"task": "multiclass classification", "categories": list(categories)}
            (folder / "metadata.json").write_text(json.dumps(metadata))
            (folder / "annotations.json").write_text(json.dumps(by_image))
            for index, (image, category) in enumerate(sorted(by_image.items())):
                path = dataset / "images" / image
                if category in CATEGORIES and not path.exists():
                    picture(category, index).save(path)
        heads = {head_id: str(dataset / "heads" / head_id) for head_id in annotations}
        return {"images": str(dataset / "images"), "heads": heads}

    def write_attempt(self, training: dict[str, Any] | None, spec: JobSpec, **changes: Any) -> Path:
        self.attempts += 1
        folder = self.folder / f"attempt-{self.attempts}"
        folder.mkdir()
        content = {
            "job": "projects/halves/jobs/one",
            "job_uid": "one",
            "attempt": self.attempts,
            "epoch": self.attempts,
            "spec": json_format.MessageToDict(spec),
            "training": training,
            "validation": None,
            "resume_folder": None,
            "checkpoint_folder": str(folder / "checkpoints"),
            "device": "cpu",
            **changes,
        }
        path = folder / "attempt.json"
        path.write_text(json.dumps(content))
        return path

    def run(
        self,
        attempt_file: Path,
        *,
        tell: Callable[[Report], str | None] = lambda report: None,
        commands: Commands | None = None,
        reporter_type: type[Reporter] = Reporter,
        **settings: Any,
    ) -> Outcome:
        """Train in this process; `tell` sees each report as it is written and may answer with a command."""
        reading, writing = os.pipe()
        config = TrainerConfig(attempt_file=attempt_file, report_fd=writing, **settings)
        commands = commands or Commands()
        reports: list[Report] = []

        def read() -> None:
            with os.fdopen(reading, "rb") as pipe:
                reports.extend(read_reports(pipe))

        listener = threading.Thread(target=read)
        listener.start()
        reporter = reporter_type(Telling(writing, tell, commands))
        try:
            reporter.ended(run(config, reporter, commands))
        finally:
            os.close(writing)
            listener.join()
        return Outcome(reports=reports, checkpoint_folder=attempt_file.parent / "checkpoints")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two threads for each of several tests at once would wait for each other most of the time."""
    torch.set_num_threads(1)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(folder=tmp_path)


@pytest.fixture
def halves() -> dict[str, str]:
    """Forty images, ten of each category."""
    return {f"{index:03}.png": CATEGORIES[index % 4] for index in range(40)}
