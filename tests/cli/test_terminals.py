"""What people see on terminals: narrow ones, without colours, without UTF-8, without a home, with closed pipes.

The processes of a whole machine and of some sixty commands take the time.
"""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.cli.home import ROWS, Home, plain

COMPARE = "sihlai metrics compare digits/first digits/second"
TABLES = [
    "sihlai project list",
    "sihlai project show digits",
    "sihlai job list digits",
    "sihlai job show digits/first",
    "sihlai job conversions digits/first",
    "sihlai checkpoint list digits/first",
    "sihlai metrics show digits/first",
    COMPARE,
    "sihlai runner list",
    "sihlai token list",
    "sihlai status",
    "sihlai ps",
    "sihlai context list",
    "sihlai dataset plan panoptic-segmentation object-detection",
]
WIDE_TABLES = ["sihlai job list digits", "sihlai checkpoint list digits/first", "sihlai metrics show digits/first"]
COLOR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-9]|4[0-8]|9[0-7])[;m]")
IN_C = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CLOSED_PIPES = [
    "sihlai logs digits/first",
    "sihlai job list digits",
    "sihlai job show digits/first --json",
    "sihlai metrics export digits/first",
    "sihlai context list",
    "sihlai api",
    "sihlai --help",
    "sihlai job submit --help",
    "sihlai --version",
]


@pytest.mark.parametrize(("line", "columns"), [*((line, 60) for line in TABLES), *((line, 80) for line in WIDE_TABLES)])
def test_a_narrow_terminal_is_enough_and_breaks_no_name(home: Home, line: str, columns: int) -> None:
    shown, exit_code = home.on_terminal(line, columns=columns)
    lines = [each.rstrip() for each in plain(shown).splitlines()]
    assert exit_code == 0, shown
    hints = ("what conversions made", "sihlai ")  # remarks on standard error may be copied: they are not broken
    assert [each for each in lines if len(each) > columns and not each.startswith(hints)] == []
    for name in ("digits/first", "digits/second") if "digits/" in line else ():
        assert all(not each.endswith(name[:-1]) for each in lines), f"{name} is broken into lines"


@pytest.mark.parametrize("line", ["sihlai job list digits", COMPARE, "sihlai --help"])
def test_colours_are_left_out_where_nobody_wants_them(home: Home, line: str) -> None:
    assert COLOR.search(home.on_terminal(line, columns=80)[0]), "there is colour where nothing is wished"
    for wish in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown, exit_code = home.on_terminal(line, columns=80, **wish)
        assert (exit_code, COLOR.search(shown)) == (0, None)
        assert line != COMPARE or "++ digits/second" in shown, "curves are told apart by their marks"


@pytest.mark.parametrize("line", CLOSED_PIPES)
def test_a_reader_that_goes_ends_a_command_without_a_word(home: Home, line: str) -> None:
    """As SIGPIPE ends `cat`: 141 says it in a shell with pipefail."""
    read, write = os.pipe()
    os.close(read)
    command = ["bash", "-c", f"exec {line}"]
    ended = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env=home.environ, cwd=home.folder, text=True, check=False
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_output_that_cannot_be_written_is_told_and_closed_output_is_nobodys(home: Home) -> None:
    for line in ("sihlai job list digits", "sihlai --help", "sihlai job show digits/first --json", "sihlai --version"):
        full = home.ask(f"{line} > /dev/full")
        assert (full.returncode, "No space left" in full.stderr, "Traceback" in full.stderr) == (1, True, False), line
    for closed in (">&-", ">&- 2>&-"):
        assert home.ask(f"sihlai job list digits {closed}").returncode == 0
    assert jobs_in(home.ask("sihlai job list digits -o name 2>&-")) == ["digits/second", "digits/first"]


def test_a_locale_that_knows_few_letters_is_enough(home: Home) -> None:
    made = home.ask("sihlai project create letters --training ~/data/digits --name 'Größe für alle'", **IN_C)
    assert made.returncode == 0, made.stderr
    assert "Größe für alle" in home.ask("sihlai project show letters").stdout, "typed in UTF-8 all the same"
    shown = home.ask("sihlai project show letters", **IN_C)
    assert (shown.returncode, "Gr??e f?r alle" in shown.stdout) == (0, True), shown
    curves = home.ask("sihlai metrics show digits/first train/loss", **IN_C)
    assert (curves.returncode, "?" in curves.stdout, "****" in curves.stdout) == (0, False, True), curves.stdout
    wrong = home.ask(r"sihlai project update letters --name $'\xff\xfe'")
    assert (wrong.returncode, "is no text in UTF-8" in wrong.stderr) == (2, True), wrong.stderr


def test_without_a_home_the_machine_is_found_where_its_folder_is_said(home: Home) -> None:
    data = home.folder / ".local" / "share" / "sihlai"
    asked = home.ask(f"env -u HOME SIHLAI_DATA={data} sihlai job list digits -o name")
    assert jobs_in(asked) == ["digits/second", "digits/first"], asked.stderr
    stranger = "unshare --user --map-user=4242 env -u HOME"
    if home.ask(f"{stranger} true").returncode:
        pytest.skip("this machine lets nobody be an unknown user")
    asked = home.ask(f"{stranger} SIHLAI_DATA={data} sihlai job list digits -o name")
    assert jobs_in(asked) == ["digits/second", "digits/first"], asked.stderr
    lost = home.ask(f"{stranger} sihlai job list digits")
    assert (lost.returncode, "Traceback" in lost.stderr) == (3, False)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sihlai job show ", ["@last", "digits/"]),
        ("sihlai job show digits/f", ["digits/first"]),
        ("sihlai metrics compare digits/first digits/", ["digits/first", "digits/second"]),
        ("sihlai checkpoint download digits/first/f", ["digits/first/final"]),
        ("sihlai job resume digits/first --checkpoint digits/first/b", ["digits/first/best"]),
        ("sihlai project show d", ["digits"]),
        ("sihlai runner drain l", ["local-1", "local-2"]),
        ("sihlai context use l", ["local"]),
        ("sihlai job show --scheduler 127.0.0.1:1 digits/", []),
        ("sihlai job sh", ["show"]),
    ],
)
def test_a_shell_completes_names_by_asking_the_service(home: Home, typed: str, offered: list[str]) -> None:
    position = len(typed.split()) - (not typed.endswith(" "))
    variables = {"_SIHLAI_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(position)}
    told = home.ask("sihlai", **variables)
    assert (told.returncode, told.stderr) == (0, "")
    assert sorted(told.stdout.split()) == offered or set(offered) < set(told.stdout.split())


def test_curves_that_are_watched_fit_the_terminal_values_first(home: Home) -> None:
    shown, exit_code = home.on_terminal("sihlai metrics watch digits/first", columns=80)
    assert exit_code == 0, shown
    drawing = plain(shown).rpartition("step 40: ")[2]
    values, _, charts = drawing.partition(" loss ")
    assert ("train/loss" in values, "valid/loss" in values, "valid/accuracy" in values) == (True, True, True)
    assert "━━ train/loss   ━━ valid/loss" in charts, "the losses are in one chart"
    assert "valid/accuracy" in charts
    assert len(drawing.splitlines()) <= ROWS


def test_top_draws_on_a_terminal_until_ctrl_c(home: Home) -> None:
    shown, exit_code = home.on_terminal("exec sihlai top --seconds 0.2", columns=80, until="digits/second")
    assert exit_code == 130
    assert shown.rstrip().endswith(("\x1b[?1049l\x1b[?25h", "\x1b[?25h\x1b[?1049l")), "the screen is as it was"
    assert "Traceback" not in shown
    piped = home.ask("sihlai top")
    assert (piped.returncode, "`sihlai status`" in piped.stderr) == (1, True)
    assert home.on_terminal("sihlai top", columns=80, TERM="dumb")[1] == 1


def test_a_quiet_command_draws_no_progress(home: Home) -> None:
    line = "sihlai checkpoint download digits/first/best --to"
    loud, quiet = (home.on_terminal(f"{line} {where}", columns=80)[0] for where in ("loud", "quiet -q"))
    assert ("━" in loud, "━" in quiet) == (True, False)


def jobs_in(told: subprocess.CompletedProcess[str]) -> list[str]:
    """The home's two jobs among those that are named: others may have submitted more."""
    return [name for name in told.stdout.split() if name in ("digits/first", "digits/second")]
