"""The trainer process: `python -m runner.train --attempt-file PATH --report-fd N`.

Trains, or evaluates, one attempt at a job and says on the report pipe what happens; the agent does all that needs a
network. grpc and nats must not be imported here. The training loop is the function `train`: what it calls saves,
measures and reports.

However the training goes, the last report is Ended, with one sentence as its message; stack traces go to the log alone.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.report import Ended, Level, Outcome, ReportWriter
from runner.trainer.attempt_file import Attempt, read_attempt
from runner.trainer.checkpoint import Position
from runner.trainer.commands import Commands, leave_signals_to_agent
from runner.trainer.config import PREFIX, TrainerConfig
from runner.trainer.failure import Failure, FailureReason, runner_failure, trainer_failure
from runner.trainer.fault import is_fault_of_machine
from runner.trainer.gradient import add_gradient
from runner.trainer.machine import keep_memory_of_steps
from runner.trainer.optimizer import set_rate
from runner.trainer.preparation import Subject, Training, prepare, prepare_evaluation
from runner.trainer.reporter import Reporter
from runner.trainer.schedule import validations_due
from runner.trainer.session import Pace, Session, Step, fetched
from services.chassis.config import load
from services.chassis.errors import ConfigurationError

SECONDS_PER_HOUR = 3_600.0
EXIT_CODE_FAILED = 1
EXIT_CODE_USAGE = 2
STANDARD_INPUT = 0
MESSAGE_CHARACTERS_MAX = 1_000
NOTHING = torch.empty(0)
OUT_OF_MEMORY_WORDS = (
    *("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory"),
    *("CUDA driver error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


def main() -> int:
    """Train the attempt that the flags name; the exit code is 0 unless it failed."""
    try:
        config = load(
            TrainerConfig, argv=sys.argv[1:], environ=os.environ, prog="python -m runner.train", prefix=PREFIX
        )
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE_USAGE
    faulthandler.enable()  # a crash leaves its stack in the log
    leave_signals_to_agent()
    keep_memory_of_steps()
    commands = Commands()
    commands.listen(STANDARD_INPUT)
    reporter = Reporter(ReportWriter(config.report_fd))
    try:
        ended = run(config, reporter, commands)
        reporter.ended(ended)
    except BrokenPipeError:  # the agent is gone, and with it whoever could be told
        return EXIT_CODE_FAILED
    return EXIT_CODE_FAILED if ended.outcome == Outcome.FAILED else 0


def run(config: TrainerConfig, reporter: Reporter, commands: Commands) -> Ended:
    """Train an attempt from beginning to end. Raises BrokenPipeError where nobody hears it, and nothing else."""
    attempt: Attempt | None = None
    session: Session | None = None
    try:
        attempt = read_attempt(config.attempt_file)
        if attempt.evaluates is not None:
            subject = prepare_evaluation(attempt, config, reporter)
            session = session_of(attempt, subject, reporter, commands)
            return session.evaluated(subject, attempt.evaluates.checkpoint)
        training = prepare(attempt, config, reporter)
        session = session_of(attempt, training, reporter, commands)
        return train(training, session)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 — the last resort of the process: whatever it is, the user gets a reason
        failure = failure_of(error, session, attempt)
        if failure is not error:
            reporter.trace(error)
        reporter.line(failure.message, Level.ERROR)
        return Ended(
            outcome=Outcome.FAILED,
            reason=failure.reason,
            message=failure.message[:MESSAGE_CHARACTERS_MAX],
            iteration=session.iteration if session else 0,
            unforeseen=not isinstance(error, Failure),
        )


def session_of(attempt: Attempt, subject: Subject, reporter: Reporter, commands: Commands) -> Session:
    """The session of what was prepared."""
    return Session(
        reporter=reporter,
        commands=commands,
        checkpoint_folder=attempt.checkpoint_folder,
        start=subject.start,
        wishes=subject.spec.data,
    )


def train(training: Training, session: Session) -> Ended:
    """Train from `training.start` to the job's limit, or until a stop is wished. Raises Failure.

    Each pass of the loop is one step: a batch, the rate, forward, backward, the optimizer, the report; and after some
    of them a validation and a checkpoint. A stop is seen before each step and at each batch of a validation.
    """
    spec, model, optimizer = training.spec, training.model, training.optimizer
    trainer, reporter = spec.trainer, session.reporter
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    position = training.start
    model.train()
    if position.iteration > 0 and validation_due(position, trainer):
        position = session.validated(training, position)  # an attempt was stopped in the middle of it
    pace = Pace(
        start=training.start,
        batch_size=trainer.batch_size,
        iterations_max=trainer.iterations_max,
        seconds_max=trainer.hours_max * SECONDS_PER_HOUR,
        started=time.perf_counter(),
    )
    finished = pace.limit_reached(position)
    with training.data.training_batches(range(position.iteration, trainer.iterations_max)) as batches:
        while not finished:
            if session.commands.wish is not None:
                return session.stopped(training, position)
            began = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            session.note_unreadable(batch)

            rate = set_rate(optimizer, position.iteration, trainer, position.training_seconds / SECONDS_PER_HOUR)
            measured: dict[str, torch.Tensor] = {}
            if batch.teaches:  # else no image of it can be read
                optimizer.zero_grad()
                measured = add_gradient(model, batch, training.device, training.autocast)
                gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
                if trainer.gradient_clip_norm > 0:
                    torch.nn.utils.clip_grads_with_norm_(learning, trainer.gradient_clip_norm, norm)
                optimizer.step()
                measured["train/gradient_norm"] = norm
                if training.average is not None:
                    training.average.update(position.iteration + 1)

            # One transfer for all numbers, and none is waited for: on a GPU each would wait for the whole step.
            numbers, there = fetched(
                torch.stack([each.detach() for each in measured.values()]) if measured else NOTHING
            )
            done = time.perf_counter()
            position = pace.after_step(position)
            step = Step(
                number=position.iteration,
                iterations_max=trainer.iterations_max,
                names=list(measured),
                numbers=numbers,
                arrived=there,
                values={
                    "train/learning_rate": rate,
                    "system/images_per_second": batch.images / (done - began),
                    "system/step_seconds": done - began,
                    "system/data_wait_seconds": arrived - began,
                },
            )
            session.note_step(step)
            finished = pace.limit_reached(position)
            reporter.progress(position.iteration, trainer.iterations_max, pace.seconds_left(position), last=finished)
            if validation_due(position, trainer) and not finished:
                position = session.validated(training, position)
                if position.validated_iteration == position.iteration:
                    session.save(training, position, cause="VALIDATION")
    return session.completed(training, position)


def validation_due(position: Position, trainer: job_spec_pb2.Trainer) -> bool:
    """Whether more validations are due than there were."""
    before = validations_due(position.validated_iteration, trainer, position.validated_seconds / SECONDS_PER_HOUR)
    return validations_due(position.iteration, trainer, position.training_seconds / SECONDS_PER_HOUR) > before


def failure_of(error: Exception, session: Session | None, attempt: Attempt | None) -> Failure:
    """What a person is told about an exception. A Failure is told as it is; the machine may be behind that too."""
    if isinstance(error, Failure):
        return runner_failure(error.message) if is_fault_of_machine(error) else error
    where = f"in step {session.iteration + 1}" if session else "before the first step"
    if attempt is not None and is_out_of_memory(error):
        spec = attempt.spec
        return Failure(
            FailureReason.OUT_OF_MEMORY,
            f"the memory was not enough {where}: lower trainer.batch_size ({spec.trainer.batch_size}), raise"
            f" trainer.micro_batches ({spec.trainer.micro_batches}), or lower data.height"
            f" and data.width ({spec.data.height} x {spec.data.width}), or take a smaller backbone than"
            f" {spec.model.backbone.name}",
        )
    problem, words = f"the trainer failed {where} with {type(error).__name__}", " ".join(str(error).split())
    if is_fault_of_machine(error):
        return runner_failure(f"{problem}, because the runner's disk, driver or GPU does not work: {words}")
    return trainer_failure(f"{problem}, see the log: {words}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that memory ran out; torch has no class of its own for the CPU's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is written: taking torch's modules apart would only hold up the next job for a second
