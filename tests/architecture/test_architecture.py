"""The direction of dependency, the layout and the size of files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOT_ENTRIES = {
    "pyproject.toml",
    "README.md",
    "protos",
    "services",
    "runner",
    "tests",
    "deploy",
    "buf.yaml",
    "Makefile",
}
FILE_LINES_MAX = 450
NO_NOUNS = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in listing.stdout.splitlines()]


def test_dependencies_point_inward() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_root_holds_what_the_architecture_names() -> None:
    entries = {path.parts[0] for path in tracked_files() if not path.parts[0].startswith(".")}
    assert entries == ROOT_ENTRIES


def test_files_are_named_for_nouns() -> None:
    assert not [path for path in tracked_files() if path.stem in NO_NOUNS]


def test_files_stay_short_enough_to_read() -> None:
    long = {
        str(path): lines
        for path in tracked_files()
        if path.suffix == ".py" and path.parts[0] in {"services", "runner"} and (ROOT / path).exists()
        if (lines := len((ROOT / path).read_text().splitlines())) > FILE_LINES_MAX
    }
    assert not long


def test_nothing_names_a_host_of_a_package_registry() -> None:
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org")
    found = [str(path) for path in tracked_files() if (ROOT / path).is_file() and mentions(ROOT / path, hosts)]
    assert not found


def mentions(path: Path, words: tuple[str, ...]) -> bool:
    content = path.read_bytes()
    return any(word.encode() in content for word in words)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("runner.agent.agent", {"torch", "torchvision", "sqlalchemy", "clickhouse_connect"}),
        ("runner.train", {"grpc", "nats", "sqlalchemy", "clickhouse_connect", "torchvision", "torch._dynamo"}),
        ("services.scheduler.servicer", {"torch", "chdb", "clickhouse_connect", "nats.contrib"}),
        ("services.scheduler.domain.job", {"grpc", "google", "sqlalchemy", "nats"}),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, forbidden: set[str]) -> None:
    """Looks at what an import really loads, extras that are not installed on that machine would fail there."""
    program = f"import sys, {module}; print(' '.join(sorted(m for m in sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not forbidden & set(result.stdout.split())
