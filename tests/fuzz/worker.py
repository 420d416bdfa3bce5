"""Fuzzes one target in a process of its own: `python -m tests.fuzz.worker TARGET SECONDS SEED FOLDER`.

Memory is bounded by the kernel. The input at work always stands in `FOLDER/current`, so that whoever watches has it
also where the process dies or hangs. The last line of the output is what was done, as JSON.
"""

from __future__ import annotations

import json
import mmap
import random
import resource
import struct
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.case import Case, case_to_bytes, save_case
from tests.fuzz.mutation import mutated
from tests.fuzz.target import TARGETS, Target, signature

MEMORY_BYTES_MAX = 512 * 2**20
"""What a reader may take beyond what the process has once everything is imported and every seed was read."""
CASE_SECONDS_MAX = 2.0
"""An input that takes longer is a finding: all are small."""
CORPUS_MAX = 2_000
CURRENT_BYTES = 2**21
FINDINGS_MAX = 20
"""Of one target: then it stops, as the rest is likely to be more of the same."""
HEAD = struct.Struct("<QI")


def main() -> None:
    """Fuzz until the time is over."""
    name, seconds, seed, folder = sys.argv[1], float(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    target = TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    current = folder / "current"
    current.write_bytes(bytes(CURRENT_BYTES))
    with current.open("r+b") as file, mmap.mmap(file.fileno(), CURRENT_BYTES) as shared:
        print(json.dumps(fuzz(target, seconds, random.Random(f"{name} {seed}"), folder, shared)), flush=True)


def fuzz(target: Target, seconds: float, source: random.Random, folder: Path, shared: mmap.mmap) -> dict[str, float]:
    """Try changed inputs; those that make a reader do something new are changed further."""
    corpus = list(target.seeds())
    assert corpus, "there is something to begin with"
    problems: set[str] = set()
    seen: set[str] = set()
    for case in corpus:
        seen.update(_tried(target, case, folder, problems))
    _bound_memory()
    begun = time.monotonic()
    executions = 0
    while time.monotonic() - begun < seconds and len(problems) < FINDINGS_MAX:
        # The newest half of the time: what was found last is the least explored.
        recent = corpus[-50:] if source.random() < 0.5 else corpus
        case = mutated(source.choice(recent), corpus, source)
        executions += 1
        data = case_to_bytes(case)[: CURRENT_BYTES - HEAD.size]
        shared[: HEAD.size + len(data)] = HEAD.pack(executions, len(data)) + data
        words = set(_tried(target, case, folder, problems))
        if not words <= seen and len(corpus) < CORPUS_MAX:
            corpus.append(case)
        seen |= words
    return {
        "executions": executions,
        "seconds": round(time.monotonic() - begun, 1),
        "corpus": len(corpus),
        "ways": len(seen),
        "findings": len(problems),
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> int:
    """Of this process alone: getrusage would tell the largest of its starter's too, whose memory it once shared."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def _tried(target: Target, case: Case, folder: Path, problems: set[str]) -> tuple[str, ...]:
    begun = time.process_time()
    words: tuple[str, ...] = ()
    try:
        words = signature(target, case)
        taken = time.process_time() - begun
        if taken > CASE_SECONDS_MAX:
            _keep(f"it took {taken:.1f} s\n", "too slow", case, folder, problems)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{type(error).__name__} {where.filename}:{where.lineno}"
        _keep(traceback.format_exc(), key, case, folder, problems)
    return words


def _keep(problem: str, key: str, case: Case, folder: Path, problems: set[str]) -> None:
    """Keep the first input of each problem."""
    if key not in problems:
        problems.add(key)
        print(f"{key}: {save_case(case, folder, problem)}", flush=True)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
