"""Whether a trainer can train here is said before a job is tried."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.__main__ import CHECK_COMMAND


def checked(device: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*CHECK_COMMAND, device]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environ})


def test_a_machine_with_torch_can_train_on_its_processor() -> None:
    assert (sys.executable, "-m", "runner.trainer.check") == CHECK_COMMAND
    found = checked("cpu")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_cannot_train_on_one() -> None:
    found = checked("cuda")
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith("RuntimeError: torch finds no GPU")


def test_a_torch_that_cannot_be_imported_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('raise ImportError("libcudnn.so.9: cannot open shared object file")')
    found = checked("auto", PYTHONPATH=str(tmp_path))
    assert found.returncode == 1
    assert found.stderr == "ImportError: libcudnn.so.9: cannot open shared object file\n"
