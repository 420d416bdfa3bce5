"""What blocking and awaiting clients give alike: facts that are known without a call."""

from __future__ import annotations

from sihlai.scheduler.v1 import job_pb2
from sihlai.scheduler.v1.job_spec_pb2 import JobSpec

from services.client.job import ENDED, state_name
from services.client.name import short


class JobFacts:
    """A job as it was when it was last read; `proto` has everything."""

    proto: job_pb2.Job

    @property
    def name(self) -> str:
        """`projects/digits/jobs/first`."""
        return self.proto.name

    @property
    def state(self) -> str:
        """`queued`, `starting`, `running`, `stopping`, `completed`, `stopped` or `failed`."""
        return state_name(self.proto.state)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.proto.state in ENDED

    @property
    def spec(self) -> JobSpec:
        """Its specification with every default filled in."""
        return self.proto.spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(self.name)!r}, {self.state})"
