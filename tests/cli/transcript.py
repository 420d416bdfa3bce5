"""One session at the command line, told as Markdown: `python -m tests.cli.transcript` runs every command once.

A machine that is up in a home of its own, real digits, real trainings. What is another value in each run (places,
ports, ids, times) is told as one that stays; long outputs are cut in the middle.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from services.cli.demo.digits import write_dataset, write_digits
from tests.cli.home import Home, plain, write_streets

COLUMNS = 116
HEAD, TAIL = 5, 2
"""How many lines of an output's beginning and end are told, where nothing else is said."""
SHOWN_HOME = "/home/researcher"
SHOWN_ID = "4f0c4e2b5d6a4c7e9a1b2c3d4e5f6a7b"
STEADY = {
    r"\beyJ[\w-]+\.[\w-]+\.[\w-]+": "eyJhbGciOiJFZERTQSJ9…",
    r"\b[0-9a-f]{64}\b": 2 * SHOWN_ID,
    r"\b[0-9a-f]{32}\b": SHOWN_ID,
    r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?(\.\d+)?": "2026-05-04 10:11:12",
}
"""What stands for every token, sum, id and time, as long as these are."""
NUMBERED: dict[str, Callable[[int, int], str]] = {
    r"(?<=127\.0\.0\.1:)\d+": lambda number, _: str(50_050 + number),
    r"(?<=process )\d+|(?<= )\d+(?= +\d+ +/)": lambda number, length: str(4 * 10 ** (length - 1) + number),
    r"\bjob-[0-9a-f]{12}\b": lambda number, _: f"job-4f0c4e2b5d{number:02}",
    r"\b[0-9a-f]{16}\b|(?<=key )[0-9a-f]{8}\b": lambda number, length: f"{number}{SHOWN_ID}"[:length],
}
"""What stands for the first, second … of all ports, process ids, jobs without a name and keys, by its length."""
PHOTOS = 6
SPECIFICATION = {
    "model": {"backbone": {"name": "tiny"}, "heads": [{"task": "multiclass-classification"}]},
    "data": {"height": 16, "width": 16},
    "trainer": {"validations": 5, "batch_size": 32},
}
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Line:
    """A command as it is typed, and how it is told."""

    command: str
    head: int = HEAD
    tail: int = TAIL
    exit_code: int = 0
    until: str = ""
    """Ctrl-C is typed when this is seen; empty for what ends by itself."""
    piped: bool = False
    """Whether its output is no terminal: what is drawn over again there comes line by line."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A part of the story."""

    title: str
    words: str
    lines: Sequence[Line]


STORY = (
    Chapter(
        title="Start",
        words="Everything runs on this machine, each part as a process of its own.",
        lines=[
            Line(command="sihlai up -d"),
            Line(command="sihlai ps"),
            Line(command="sihlai version", head=1, tail=0),
        ],
    ),
    Chapter(
        title="Describe a project",
        words="A dataset is looked into, and told what is wrong with it; a team says once where it lies.",
        lines=[
            Line(command="sihlai dataset inspect ~/data/digits", head=2, tail=0),
            Line(command="sihlai dataset validate ~/data/digits"),
            Line(command="sihlai dataset images ~/data/digits --split validation --limit 5"),
            Line(command="sihlai dataset tasks", head=1, tail=0),
            Line(command="sihlai project create digits --training ~/data/digits"),
            Line(command="sihlai project update digits --name 'Handwritten digits'"),
            Line(command="sihlai project show digits", head=2, tail=0),
            Line(command="sihlai project list"),
        ],
    ),
    Chapter(
        title="Submit, follow, stop, resume",
        words="A job is trained as soon as a runner is free, and followed live. A stop keeps its model.",
        lines=[
            Line(command="sihlai job defaults", head=2, tail=0),
            Line(
                command="sihlai job submit digits/first --task multiclass-classification --backbone tiny "
                "--resolution 16"
            ),
            Line(
                command="sihlai logs digits/first -f",
                until="validation after step 200",
                exit_code=INTERRUPTED,
                head=1,
                tail=2,
            ),
            Line(command="sihlai job watch digits", until="digits/first", exit_code=INTERRUPTED, tail=0),
            Line(command="sihlai top --seconds 5", until="heard", exit_code=INTERRUPTED, head=5, tail=0),
            Line(command="sihlai job stop digits/first --grace 60 --follow", head=2, tail=1),
            Line(command="sihlai job resume digits/first --set trainer.iterations_max=600 --follow", head=1, tail=1),
            Line(command="sihlai metrics watch @last", piped=True),
            Line(command="sihlai job show @last", head=4, tail=0),
        ],
    ),
    Chapter(
        title="Compare",
        words="Every point is kept; curves of several jobs stand side by side.",
        lines=[
            Line(command="sihlai job submit digits spec.yaml --iterations 300 --follow", head=2, tail=1),
            Line(command="sihlai job wait digits/first @last", head=0, tail=1),
            Line(command="sihlai job list digits"),
            Line(command="sihlai status", head=1, tail=0),
            Line(command="sihlai metrics compare digits/first @last --series valid/loss", head=21, tail=0),
            Line(command="sihlai metrics show @last train/loss --no-curves"),
            Line(command="sihlai metrics export @last --to points.csv"),
            Line(command="sihlai job conversions @last", head=1, tail=0),
        ],
    ),
    Chapter(
        title="Use the model",
        words="Checkpoints are verified when they are downloaded, exports are checked against PyTorch.",
        lines=[
            Line(command="sihlai checkpoint list digits/first", head=3, tail=0),
            Line(command="sihlai checkpoint download digits/first/best --to model", head=0, tail=1),
            Line(command="sihlai predict digits/first/best photos --draw seen", head=4, tail=1),
            Line(command="sihlai model export digits/first/best --format onnx", head=0),
            Line(command="sihlai job evaluate digits/first/best --dataset ~/data/harder --follow", head=1, tail=1),
            Line(command="sihlai job samples @last --to sheet.png", head=0, tail=1),
        ],
    ),
    Chapter(
        title="Convert datasets",
        words="One dataset serves many tasks, and comes from and goes to other tools.",
        lines=[
            Line(command="sihlai dataset plan panoptic-segmentation object-detection", head=1, tail=0),
            Line(
                command="sihlai dataset convert ~/data/streets object-detection --destination ~/data/boxes",
                head=2,
                tail=1,
            ),
            Line(command="sihlai dataset preview ~/data/streets --to object-detection"),
            Line(command="sihlai dataset export yolo-detect ~/data/streets ~/data/yolo --copy-images", head=0, tail=1),
            Line(command="sihlai dataset import ~/data/yolo ~/data/back", head=0, tail=1),
        ],
    ),
    Chapter(
        title="Let others in, look after it, clear away",
        words="Every call carries a token, an installation elsewhere is a context, runners can be put aside.",
        lines=[
            Line(command="sihlai token create ada --role digits=editor --days 90"),
            Line(command="sihlai token list -o name"),
            Line(command="sihlai token inspect", head=2, tail=0),
            Line(command="sihlai token revoke $(sihlai token list -o name | head -1)"),
            Line(command="sihlai token rotate-key"),
            Line(command="sihlai context add team gpu-farm:50051 --token-file ~/team.token"),
            Line(command="sihlai context list"),
            Line(command="sihlai context use local"),
            Line(command="sihlai context remove team"),
            Line(command="sihlai runner drain local-1"),
            Line(command="sihlai runner undrain local-1"),
            Line(command="sihlai runner list -o name"),
            Line(command="sihlai project rotate-key"),
            Line(command="sihlai api", head=1, tail=0),
            Line(command="sihlai api JobService.GetJob name=projects/digits/jobs/first -o yaml", head=3, tail=0),
            Line(command="sihlai --show-completion bash", head=1, tail=0),
            Line(command="sihlai demo --help", head=1, tail=0),
            Line(command="sihlai job delete digits/first --yes"),
            Line(command="sihlai project delete digits --yes"),
            Line(command="sihlai down"),
        ],
    ),
)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a line said, as it is told, and how it ended."""

    line: Line
    text: str
    exit_code: int


def session(home: Home) -> Iterator[tuple[Chapter, list[Told]]]:
    """The story, chapter by chapter, in a home that has `write_home`'s data."""
    settle = settled(home.folder)
    try:
        for chapter in STORY:
            yield chapter, [_told(home, line, settle) for line in chapter.lines]
    finally:
        home.ask("sihlai down")  # also where it is told no further


def _told(home: Home, line: Line, settle: Callable[[str], str]) -> Told:
    if line.piped:
        done = home.ask(f"{line.command} 2>&1")
        text, exit_code = done.stdout, done.returncode
    else:
        # Bars that are drawn over again go to standard error, which is a pipe to the same terminal here.
        shown, exit_code = home.on_terminal(
            f"{line.command} 2> >(cat)", columns=COLUMNS, until=line.until, NO_COLOR="1"
        )
        text = plain(shown).replace("^C", "")
    return Told(line=line, text=cut(settle(text), line.head, line.tail), exit_code=exit_code)


def write_home(folder: Path) -> None:
    """The digits of scikit-learn as two datasets and photos, quads to convert, a specification and a token."""
    everything = write_digits(folder / "all")
    known, new = everything[:1_500], everything[1_500:]
    write_dataset(folder / "data" / "digits", known, [digit.category for digit in known])
    write_dataset(folder / "data" / "harder", new, [digit.category for digit in new])
    (folder / "photos").mkdir()
    for digit in new[:PHOTOS]:
        shutil.copy(digit.path, folder / "photos")
    shutil.rmtree(folder / "all")
    write_streets(folder / "data" / "streets")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPECIFICATION))
    (folder / "team.token").write_text("secret")


def settled(folder: Path) -> Callable[[str], str]:
    """What replaces values that are others in each run by ones that stay, the same by the same."""
    known: dict[str, dict[str, str]] = {pattern: {} for pattern in NUMBERED}

    def settle(text: str) -> str:
        text = text.replace(str(folder), SHOWN_HOME)
        for pattern, shown in STEADY.items():
            text = re.sub(pattern, lambda found, shown=shown: shown[: len(found[0])], text)
        for pattern, nth in NUMBERED.items():
            seen = known[pattern]
            text = re.sub(
                pattern,
                lambda found, seen=seen, nth=nth: seen.setdefault(found[0], nth(len(seen) + 1, len(found[0]))),
                text,
            )
        return text

    return settle


def cut(text: str, head: int, tail: int) -> str:
    """The beginning and the end of a text, with a line between that stands for the rest, if there is any."""
    lines = [line.rstrip() for line in re.sub(r"\A\s*\n", "", text).rstrip().splitlines()]
    if len(lines) <= head + tail + 1:
        return "\n".join(lines)
    return "\n".join([*lines[:head], "…", *lines[len(lines) - tail :]])


def markdown(chapter: Chapter, told: Sequence[Told]) -> str:
    """A chapter as it stands in a document."""
    outputs = "\n".join(f"$ {each.line.command}\n{each.text}".rstrip() for each in told)
    return f"**{chapter.title}.** {chapter.words}\n\n```console\n{outputs}\n```\n"


def main() -> None:
    """Tell the session; what ended otherwise than it should is told at the end, with exit code 1."""
    with tempfile.TemporaryDirectory() as path:
        home = Home(Path(path))
        write_home(home.folder)
        wrong = []
        for chapter, told in session(home):
            print(markdown(chapter, told), flush=True)
            wrong += [each for each in told if each.exit_code != each.line.exit_code]
    for each in wrong:
        print(f"{each.line.command}: exit code {each.exit_code}, not {each.line.exit_code}", file=sys.stderr)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
