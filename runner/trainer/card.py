"""The model card: what a finished model is, for people (card.md) and for programs (card.json), beside its weights."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from sihlai.scheduler.v1 import job_spec_pb2

from runner.samples import contact_sheet, drawn_pairs_of
from runner.tasks import task_of
from runner.tasks.task import Vocabulary
from runner.trainer.checkpoint import Position, software_versions
from runner.trainer.failure import Failure

CARD_JSON, CARD_MARKDOWN, CARD_SAMPLES = "card.json", "card.md", "card-samples.png"
SAMPLES_DRAWN_MAX = 6
"""Of each head."""
WORDS_SHOWN_MAX = 20
"""Of a vocabulary, in the text; card.json has all."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The metrics of one validation, by series, without those of single classes."""

    iteration: int
    values: Mapping[str, float]


def card_files(
    *,
    job: str,
    evaluates: str = "",
    dataset_fingerprint: str,
    spec: job_spec_pb2.JobSpec,
    vocabularies: Sequence[Vocabulary],
    position: Position,
    series: str,
    last: Measured | None,
    best: Measured | None,
    samples: bytes,
    left_out: Sequence[str] = (),
) -> dict[str, bytes]:
    """The files by name. `best` is None where the best validation was in an earlier attempt, `samples` may be empty.

    `left_out`: images and maps that the last attempt could not read, each with the reason.
    `evaluates`: of an evaluation, the checkpoint.
    """
    configuration = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    about: dict[str, Any] = {
        "job": job,
        "evaluates": evaluates or None,
        "iteration": position.iteration,
        "training_seconds": round(position.training_seconds, 1),
        "dataset_fingerprint": dataset_fingerprint,
        "left_out": list(left_out),
        "versions": software_versions(),
        "heads": {
            head.id: {"task": task_of(head.task).name, "vocabulary": vocabulary}
            for head, vocabulary in zip(spec.model.heads, vocabularies, strict=True)
        },
        "selection": {
            "series": series,
            "best_iteration": position.best_iteration,
            "best_value": position.best_value,
            "metrics": None if best is None else dict(best.values),
        },
        "final_metrics": None if last is None else dict(last.values),
        "configuration": configuration,
    }
    files: dict[str, bytes] = {}
    sheet = _sheet(spec, vocabularies, samples)
    if sheet:
        files[CARD_SAMPLES] = sheet
    files[CARD_JSON] = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
    files[CARD_MARKDOWN] = _markdown(about, with_samples=bool(sheet)).encode()
    return files


def _sheet(spec: job_spec_pb2.JobSpec, vocabularies: Sequence[Vocabulary], samples: bytes) -> bytes:
    """A PNG of some samples of each head; empty where there is none that can be drawn."""
    if not samples:
        return b""
    try:
        pairs = list(drawn_pairs_of(spec, vocabularies, samples, "", SAMPLES_DRAWN_MAX))
    except Failure:  # a model without its picture is better than no model
        return b""
    if not pairs:
        return b""
    file = io.BytesIO()
    contact_sheet(pairs).save(file, "PNG")
    return file.getvalue()


def _markdown(about: Mapping[str, Any], *, with_samples: bool) -> str:
    selection = about["selection"]
    lines = [
        f"# {about['job']}",
        "",
        f"{_what(about)}, by {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
        f"Data: fingerprint `{about['dataset_fingerprint'] or 'unknown'}`.",
        "",
        *_left_out(about["left_out"]),
        "## Heads",
        "",
        "| head | task | vocabulary |",
        "|---|---|---|",
    ]
    for head_id, head in about["heads"].items():
        lines.append(f"| {head_id} | {head['task']} | {_words(head['vocabulary'])} |")
    lines += ["", "## Metrics", "", f"Selected by `{selection['series']}`", ""]
    if selection["best_iteration"] is not None:
        lines[-2] += f": best after step {selection['best_iteration']}, {selection['best_value']:.4f}."
    best, final = selection["metrics"] or {}, about["final_metrics"] or {}
    if best or final:
        lines += ["| series | selected | final |", "|---|---|---|"]
        lines += [f"| {name} | {_number(best.get(name))} | {_number(final.get(name))} |" for name in {**best, **final}]
    if with_samples:
        lines += ["", "## Samples", "", f"Truth, and beside it what the model says.\n\n![samples]({CARD_SAMPLES})"]
    written = json.dumps(about["configuration"], indent=2, ensure_ascii=False)
    lines += ["", "## Configuration", "", "```json", written, "```", ""]
    return "\n".join(lines)


def _left_out(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    more = f"\n- and {len(files) - WORDS_SHOWN_MAX} more, see {CARD_JSON}" if len(files) > WORDS_SHOWN_MAX else ""
    return ["Left out of it:", "", *(f"- {each}" for each in files[:WORDS_SHOWN_MAX]), more]


def _what(about: Mapping[str, Any]) -> str:
    if about["evaluates"]:
        return f"An evaluation of {about['evaluates']}, a model after {about['iteration']} steps"
    return f"A model after {about['iteration']} steps ({about['training_seconds']:g} s of training)"


def _words(vocabulary: Mapping[str, Any]) -> str:
    parts = []
    for key, value in vocabulary.items():
        names = [str(each) for each in value] if isinstance(value, list) else []
        if names:
            more = f" and {len(names) - WORDS_SHOWN_MAX} more" if len(names) > WORDS_SHOWN_MAX else ""
            parts.append(f"{key}: {', '.join(names[:WORDS_SHOWN_MAX])}{more}")
    return "; ".join(parts).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
