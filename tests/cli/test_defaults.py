"""The table of defaults."""

from google.protobuf.json_format import MessageToDict
from sihlai.conversion.v1 import task_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.cli.defaults import field_defaults
from services.scheduler.specification import complete


def test_every_field_has_a_meaning_and_appears_once() -> None:
    found = field_defaults()
    assert all(field.meaning for field in found)
    assert len({field.path for field in found}) == len(found)


def test_the_defaults_are_those_that_the_scheduler_fills_in() -> None:
    spec = JobSpec()
    spec.model.heads.add(task=task_pb2.TASK_MULTICLASS_CLASSIFICATION)
    spec.trainer.sgd.SetInParent()
    spec.trainer.multi_step.SetInParent()
    shown = {field.path: field.default for field in field_defaults()}
    filled = flat(MessageToDict(complete(spec), preserving_proto_field_name=True))
    numbers = {path: value for path, value in filled if isinstance(value, float | int) and not isinstance(value, bool)}
    assert shown["trainer.multi_step.milestones"] == "0.6 and 0.85"
    assert (numbers.pop("trainer.multi_step.milestones[0]"), numbers.pop("trainer.multi_step.milestones[1]")) == (
        0.6,
        0.85,
    )
    assert len(numbers) > 25
    assert {path: float(shown[path]) for path in numbers} == numbers


def flat(found: object, path: str = "") -> list[tuple[str, object]]:
    if isinstance(found, dict):
        return [pair for key, value in found.items() for pair in flat(value, f"{path}.{key}" if path else key)]
    if isinstance(found, list):
        return [pair for index, value in enumerate(found) for pair in flat(value, f"{path}[{index}]")]
    return [(path, int(found) if isinstance(found, str) and found.lstrip("-").isdigit() else found)]
