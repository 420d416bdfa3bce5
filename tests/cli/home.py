"""A person's home folder with datasets, and a machine that is up in it: commands run as they are typed at its shell."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import yaml
from PIL import Image

Step: TypeAlias = tuple[str, Callable[[], object]]
"""A text on a terminal, and what is done once it is there."""
IMAGES = 24
WAIT_SECONDS = 240.0
ROWS = 24
"""Of a terminal."""
KEPT_VARIABLES = ("PATH", "PYTHONPATH", "TMPDIR")
STEERING = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
DRAWN = {"bar": (2, 7, 14, 9), "square": (4, 4, 12, 12)}
SPECIFICATION = {
    "model": {"backbone": {"name": "tiny"}, "heads": [{"task": "multiclass-classification"}]},
    "data": {"height": 16, "width": 16},
    "trainer": {"iterations_max": 40, "validations": 2, "batch_size": 8},
}


@dataclass
class Home:
    """The folder, and what was asked of the machine already."""

    folder: Path
    asked: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        programs = str(Path(sys.executable).parent)
        return kept | {"HOME": str(self.folder), "PATH": f"{programs}:{kept.get('PATH', '')}", "LANG": "C.UTF-8"}

    def ask(self, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The line, as bash understands it in the home folder."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    def ask_once(self, line: str) -> subprocess.CompletedProcess[str]:
        """What it said to the line when it was asked the first time."""
        if line not in self.asked:
            self.asked[line] = self.ask(line)
        return self.asked[line]

    def on_terminal(
        self, line: str, *, columns: int, until: str = "", meanwhile: Sequence[Step] = (), **environ: str
    ) -> tuple[str, int]:
        """What it shows on a terminal of so many columns, and its exit code. Ctrl-C is typed once `until` is seen.

        `meanwhile`: what is done before that once a text is seen, in this order.
        """
        process, terminal = pty.fork()
        if process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # also where a shell in the background has it ignored
            os.chdir(self.folder)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
            os.execvpe("bash", ["bash", "-c", line], self.environ | {"TERM": "xterm-256color"} | environ)
        shown = _read(terminal, [*meanwhile, (until, lambda: os.write(terminal, b"\x03"))] if until else meanwhile)
        return shown, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def until_first_line(self, line: str) -> tuple[str, int]:
        """The first line that it says, and its exit code after Ctrl-C."""
        words = ["bash", "-c", f"exec {line}"]
        with subprocess.Popen(words, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        return said, process.returncode


def plain(shown: str) -> str:
    """Without what steers a terminal."""
    return STEERING.sub("", shown).replace("\r\n", "\n")


def _read(terminal: int, steps: Sequence[Step]) -> str:
    shown, seen, left = "", 0, list(steps)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a letter may come in two pieces
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            found = os.read(terminal, 1 << 16)
        except OSError:  # Linux' way to say that nobody has the other side any more
            break
        if not found:
            break
        shown += decoder.decode(found)
        if left and (place := shown.find(left[0][0], seen)) >= 0:
            seen = place + 1
            left.pop(0)[1]()
    os.close(terminal)
    return shown


def write_datasets(home: Path) -> None:
    """What the examples of the help name."""
    digits = home / "data" / "digits"
    names = {f"{index:02}.png": list(DRAWN)[index % 2] for index in range(IMAGES)}
    kinds = {"task": "multiclass classification", "categories": list(DRAWN)}
    _write_native(digits, names, kinds, lambda name: DRAWN[names[name]])
    for copy in ("more-digits", "harder"):
        shutil.copytree(digits, home / "data" / copy)
    write_streets(home / "data" / "streets")
    for name, category in names.items():
        target = home / "photos" / "train" / category
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(digits / "images" / name, target)
    (home / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION))
    (home / "team.token").write_text("secret")


def write_streets(folder: Path) -> None:
    """A car on two images of three, with its four corners."""
    car = {"category": "car", "quad": [[2, 2], [12, 2], [12, 12], [2, 12]]}
    quads = {f"{index:02}.png": [car] if index % 3 else [] for index in range(IMAGES)}
    kinds = {"task": "quadrilateral detection", "categories": ["car"]}
    _write_native(folder, quads, kinds, lambda _: (2, 2, 12, 12))


def _write_native(
    folder: Path,
    annotations: Mapping[str, object],
    metadata: Mapping[str, object],
    box_of: Callable[[str], tuple[int, int, int, int]],
) -> None:
    (folder / "images").mkdir(parents=True)
    for name in annotations:
        image = Image.new("L", (16, 16))
        image.paste(255, box_of(name))
        image.save(folder / "images" / name)
    (folder / "metadata.yaml").write_text(yaml.safe_dump({**metadata, "annotations": "annotations.yaml"}))
    (folder / "annotations.yaml").write_text(json.dumps(annotations))
