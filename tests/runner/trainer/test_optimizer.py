"""Which weights decay, which rate they get, and what a resumed optimizer keeps."""

import torch
from sihlai.scheduler.v1.job_spec_pb2 import Trainer

from runner.trainer.model import Model, build_model
from runner.trainer.optimizer import build_optimizer, load_optimizer_state, set_rate
from tests.runner.trainer.conftest import spec_from

VOCABULARIES = [{"categories": ["a", "b"]}]


def model() -> Model:
    return build_model(spec_from().model, VOCABULARIES)


def trainer(**optimizer: dict[str, float]) -> Trainer:
    return spec_from(trainer={"adamw": None, **optimizer}).trainer


def names_by_group(tested: Model, optimizer: torch.optim.Optimizer) -> list[tuple[float, float, set[str]]]:
    names = {id(parameter): name for name, parameter in tested.named_parameters()}
    return [
        (group["weight_decay"], group["rate_factor"], {names[id(parameter)] for parameter in group["params"]})
        for group in optimizer.param_groups
    ]


def test_norms_and_biases_do_not_decay_and_the_backbone_has_its_rate() -> None:
    tested = model()
    options = trainer(sgd={"learning_rate": 0.5, "weight_decay": 0.01, "backbone_rate_factor": 0.1})
    optimizer = build_optimizer(tested, options)
    found = names_by_group(tested, optimizer)
    for decay, factor, names in found:
        for name in names:
            assert factor == (0.1 if name.startswith("backbone.") else 1.0)
            assert decay == (0.01 if dict(tested.named_parameters())[name].ndim > 1 else 0.0)
    assert sum(len(names) for *_, names in found) == len(list(tested.parameters()))
    rate = set_rate(optimizer, 2, options)
    assert {group["lr"] for group in optimizer.param_groups} == {rate, rate * 0.1}


def test_frozen_weights_are_left_out() -> None:
    tested = model()
    tested.backbone.freeze(2)
    names = set().union(*(names for *_, names in names_by_group(tested, build_optimizer(tested, trainer()))))
    assert {name.split(".")[1] for name in names if name.startswith("backbone.")} == {"stage-3"}


def step(tested: Model, optimizer: torch.optim.Optimizer) -> None:
    tested(torch.rand(4, 3, 16, 16))["side"]["logits"].square().sum().backward()
    optimizer.step()


def test_a_resumed_optimizer_keeps_its_moments_and_takes_the_new_options() -> None:
    tested = model()
    before = build_optimizer(tested, trainer(adamw={"weight_decay": 0.5, "beta1": 0.8}))
    step(tested, before)
    after = build_optimizer(tested, trainer(adamw={"weight_decay": 0.1, "beta1": 0.9}))
    assert load_optimizer_state(after, before.state_dict()) is None
    assert {group["betas"][0] for group in after.param_groups} == {0.9}
    assert {group["weight_decay"] for group in after.param_groups} == {0.0, 0.1}
    parameter = next(tested.parameters())
    assert torch.equal(after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"])


def test_an_optimizer_of_another_kind_begins_anew_and_says_so() -> None:
    tested = model()
    before = build_optimizer(tested, trainer(sgd={}))
    step(tested, before)
    after = build_optimizer(tested, trainer(adamw={}))
    assert load_optimizer_state(after, before.state_dict()) == "the checkpoint's optimizer is of another kind"
    assert not after.state
