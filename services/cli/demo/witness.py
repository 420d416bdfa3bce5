"""Somebody who watches a job from its submission to its end: its states, its points and its lines, each as it comes."""

from __future__ import annotations

import asyncio

from sihlai.logs.v1.log_line_pb2 import LogLine
from sihlai.logs.v1.log_service_pb2 import TailLogsRequest
from sihlai.metrics.v1.metrics_service_pb2 import WatchMetricsRequest
from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_pb2 import Job

from services.chassis.errors import SihlaiError
from services.cli.view.live_series import LiveSeries
from services.client import job as on_job
from services.client import series as on_series
from services.client.face import AsyncClient

LOSS = "train/loss"


class Witness:
    """What was seen of one job. Nothing is made up for a gap: what the streams sent is what stands here."""

    def __init__(self, client: AsyncClient, job: Job) -> None:
        self._client = client
        self._changed = asyncio.Condition()
        self.job = job
        self.states: list[job_pb2.JobState.ValueType] = [job.state]
        self.series = LiveSeries()
        self.lines: list[LogLine] = []
        self.logs_complete = False
        self.breaks = 0
        """How often a stream broke and went on."""

    async def watch(self) -> None:
        """Watch until the job, its points and its lines have ended."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_states())
            tasks.create_task(self._watch_points())
            tasks.create_task(self._watch_lines())

    async def reached(self, step: int) -> None:
        """Wait until a point of this step was seen, or the job has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.step >= step or self.job.HasField("end_time"))

    @property
    def step(self) -> int:
        """The highest step of the training loss that was seen."""
        last = self.series.last(LOSS)
        return last[0] if last else 0

    async def _watch_states(self) -> None:
        async for job in self._client.iterate(on_job.watched, self.job.name, on_break=self._on_break):
            self.job = job
            if job.state != self.states[-1]:
                self.states.append(job.state)
            await self._notify()

    async def _watch_points(self) -> None:
        request = WatchMetricsRequest(job=self.job.name)
        async for answer in self._client.iterate(on_series.watched, request, on_break=self._on_break):
            self.series.add(answer)
            await self._notify()

    async def _watch_lines(self) -> None:
        request = TailLogsRequest(job=self.job.name, follow=True)
        async for answer in self._client.iterate(on_job.tailed, request, on_break=self._on_break):
            self.lines += answer.batch.lines
            self.logs_complete = answer.ended.logs_complete
            await self._notify()

    def _on_break(self, _error: SihlaiError | None) -> None:
        self.breaks += 1

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
