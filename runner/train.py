"""The trainer process: `python -m runner.train --attempt-file PATH --report-fd N`.

Trains one attempt at a job and says on the report pipe what happens; the agent does all that needs a network. grpc and
nats must not be imported here. The training loop is the function `train`: what it calls saves, measures and reports.

However the training goes, the last report is Ended, with one sentence as its message; stack traces go to the log alone.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from runner.report import Ended, Level, Outcome, ReportWriter
from runner.trainer.attempt_file import Attempt, read_attempt
from runner.trainer.commands import Commands
from runner.trainer.config import PREFIX, TrainerConfig
from runner.trainer.failure import Failure, FailureReason, dataset_failure, trainer_failure
from runner.trainer.model import images_to_float
from runner.trainer.optimizer import set_rate
from runner.trainer.preparation import Training, prepare
from runner.trainer.reporter import Reporter
from runner.trainer.schedule import validation_iterations
from runner.trainer.session import Pace, Session
from services.chassis.config import load
from services.chassis.errors import ConfigurationError

SECONDS_PER_HOUR = 3_600.0
EXIT_CODE_FAILED = 1
EXIT_CODE_USAGE = 2
STANDARD_INPUT = 0
MESSAGE_CHARACTERS_MAX = 1_000
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def main() -> int:
    """Train the attempt that the flags name; the exit code is 0 unless it failed."""
    try:
        config = load(
            TrainerConfig, argv=sys.argv[1:], environ=os.environ, prog="python -m runner.train", prefix=PREFIX
        )
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE_USAGE
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
        training = prepare(attempt, config, reporter)
        session = Session(
            reporter=reporter,
            commands=commands,
            checkpoint_folder=attempt.checkpoint_folder,
            start=training.start,
        )
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
        )


def train(training: Training, session: Session) -> Ended:
    """Train from `training.start` to the job's limit, or until a stop is wished. Raises Failure.

    Each pass of the loop is one step: a batch, the rate, forward, backward, the optimizer, the report; and after some
    of them a validation and a checkpoint. A stop is seen before each step and at each batch of a validation.
    """
    spec, model, optimizer = training.spec, training.model, training.optimizer
    trainer, reporter = spec.trainer, session.reporter
    validations = validation_iterations(trainer)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    position = training.start
    model.train()
    if position.iteration in validations and position.validated_iteration < position.iteration:
        position = session.validated(training, position)  # an attempt was stopped in the middle of it
    pace = Pace(
        start=training.start,
        iterations_max=trainer.iterations_max,
        seconds_max=trainer.hours_max * SECONDS_PER_HOUR,
        started=time.perf_counter(),
    )
    finished = pace.limit_reached(position)
    with training.data.training_batches(spec, range(position.iteration, trainer.iterations_max)) as batches:
        while not finished:
            if session.commands.wish is not None:
                return session.stopped(training, position)
            began = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            session.note_unreadable(batch, training.data.training_images)
            if all(found is None for found in batch.targets):
                raise dataset_failure(f"no image of step {position.iteration + 1} can be read and learned from")

            rate = set_rate(optimizer, position.iteration, trainer)
            optimizer.zero_grad()
            with training.autocast:
                outputs = model(images_to_float(batch.images, training.device))
                targets = [None if found is None else found.to(training.device) for found in batch.targets]
                losses = model.losses(outputs, targets)
            losses.total.backward()  # type: ignore[no-untyped-call]
            gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            # One transfer for all numbers: on a GPU each would wait for the whole step.
            loss, gradient_norm, *head_losses = torch.stack([losses.total, norm, *losses.by_head.values()]).tolist()
            session.refuse_divergence(position.iteration + 1, loss, gradient_norm)
            if trainer.gradient_clip_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(learning, trainer.gradient_clip_norm, norm)
            optimizer.step()

            done = time.perf_counter()
            position = pace.after_step(position)
            values = {
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/gradient_norm": gradient_norm,
                "system/images_per_second": len(batch.images) / (done - began),
                "system/step_seconds": done - began,
                "system/data_wait_seconds": arrived - began,
            }
            for head_id, head_loss in zip(losses.by_head, head_losses, strict=True):
                values[f"{head_id}/train/loss"] = head_loss
            reporter.points(position.iteration, values)
            finished = pace.limit_reached(position)
            reporter.progress(position.iteration, trainer.iterations_max, pace.seconds_left(position), last=finished)
            session.tell_step(position.iteration, trainer.iterations_max, values)
            if position.iteration in validations and not finished:
                position = session.validated(training, position)
                if position.validated_iteration == position.iteration:
                    session.save(training, position, cause="VALIDATION")
    return session.completed(training, position)


def failure_of(error: Exception, session: Session | None, attempt: Attempt | None) -> Failure:
    """What a person is told about an exception. A Failure is told as it is."""
    if isinstance(error, Failure):
        return error
    where = f"in step {session.iteration + 1}" if session else "before the first step"
    if attempt is not None and is_out_of_memory(error):
        spec = attempt.spec
        return Failure(
            FailureReason.OUT_OF_MEMORY,
            f"the memory was not enough {where}: lower trainer.batch_size ({spec.trainer.batch_size}) or data.height"
            f" and data.width ({spec.data.height} x {spec.data.width}), or take a smaller backbone than"
            f" {spec.model.backbone.name}",
        )
    words = " ".join(str(error).split())
    return trainer_failure(f"the trainer failed {where} with {type(error).__name__}, see the log: {words}")


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
