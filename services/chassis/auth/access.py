"""The one table: which call needs what.

Each RPC of each service stands here; one that does not is refused to all but admins, and a test looks for it. A refusal
comes before anything is read, so it is the same whether what was asked for exists or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from services.chassis.auth.principal import ALL_PROJECTS, ANY_RUNNER, Kind, Principal, Role
from services.chassis.errors import PermissionDenied, Reason

_PROJECT = re.compile(r"(projects/[a-z]([a-z0-9-]{0,61}[a-z0-9])?)(/.*)?", re.DOTALL)
_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

VIEWER, EDITOR, ADMIN = Role.VIEWER, Role.EDITOR, Role.ADMIN


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a caller needs.

    Users: `role` in each project that the fields `on` name (paths in the request; what they hold is a name in the
    project, or a list of some); without fields, in any one project. `also` are fields that may be empty, each with the
    role that is needed where it is not. Without a `role` only an installation's admin may, `anyone` lets everybody in
    who has a token. `runner` lets runners in (a path: only the one that is named there), `service` services.
    """

    role: Role | None = None
    on: tuple[str, ...] = ()
    also: Mapping[str, Role] = field(default_factory=lambda: MappingProxyType({}))
    anyone: bool = False
    runner: bool | str = False
    service: bool = False

    def admit(self, principal: Principal, method: str) -> None:
        """Raise PermissionDenied where no request of this method could be the caller's to send."""
        match principal.kind:
            case Kind.RUNNER:
                admitted = self.anyone or bool(self.runner)
            case Kind.SERVICE:
                admitted = self.anyone or self.service
            case Kind.USER:
                admitted = (
                    self.anyone
                    or principal.is_admin
                    or (self.role is not None and (bool(self.on) or principal.may_anywhere(self.role)))
                )
        if not admitted:
            raise _denied(principal, method, self._wanted())

    def check(self, principal: Principal, method: str, request: Any) -> None:
        """Raise PermissionDenied where the caller may not do this to what the request names."""
        if principal.kind is Kind.RUNNER and isinstance(self.runner, str):
            named = str(getattr(request, self.runner))
            if principal.subject not in (ANY_RUNNER, named):
                raise _denied(principal, method, "the token of that very runner")
        if principal.kind is not Kind.USER or principal.is_admin or self.anyone:
            return
        wanted = [(path, self.role) for path in self.on if self.role is not None]
        wanted += [(path, role) for path, role in self.also.items() if _named(request, path, optional=True)]
        for path, role in wanted:
            for project in _named(request, path):
                if not principal.may(role, project):
                    raise _denied(principal, method, f"the role {role.name.lower()} in {project}")

    def _wanted(self) -> str:
        if self.role is not None:
            return f"the role {self.role.name.lower()} in a project"
        who = [word for word, is_in in (("a runner", self.runner), ("a service", self.service)) if is_in]
        return f"the token of {' or '.join([*who, 'an admin of the installation'])}"


def rule_of(method: str) -> Rule:
    """The rule of `/package.Service/Method`; only an admin may call what is served and not in the table."""
    return ACCESS.get(method.lstrip("/"), _NOBODYS if method == NOT_SERVED else Rule())


def _denied(principal: Principal, method: str, wanted: str) -> PermissionDenied:
    name = method.rpartition("/")[2]
    return PermissionDenied(
        Reason.PERMISSION_DENIED,
        f"{principal.subject} may not call {name}: it needs {wanted}",
        {"principal": principal.subject, "permission": f"{name}: {wanted}"},
    )


def _named(request: Any, path: str, *, optional: bool = False) -> list[str]:
    """The projects that a field names. What is no name in a project counts as all of them, or as none if `optional`."""
    value = request
    for part in path.split("."):
        value = getattr(value, part)
    texts: Iterable[str] = [value] if isinstance(value, str) else value
    if path == PROJECT_ID:
        return [f"projects/{text}" if _ID.fullmatch(text) else ALL_PROJECTS for text in texts]
    found = [(text, _PROJECT.fullmatch(text)) for text in texts]
    return [match[1] if match else ALL_PROJECTS for text, match in found if text or not optional]


PROJECT_ID = "project_id"
"""The one field that holds an id, not a name: of a project that is to be made."""

_PROJECTS = {
    "CreateProject": Rule(role=ADMIN, on=(PROJECT_ID,)),
    "GetProject": Rule(role=VIEWER, on=("name",)),
    # Tells of those alone that the caller may see.
    "ListProjects": Rule(anyone=True),
    "UpdateProject": Rule(role=ADMIN, on=("project.name",)),
    "DeleteProject": Rule(role=ADMIN, on=("name",)),
    "RotateCredentialsKey": Rule(),
}
_INITIALIZATION = MappingProxyType({"spec.model.initialization.checkpoint.checkpoint": VIEWER})
"""A job may begin from a model of another project."""
_JOBS = {
    "SubmitJob": Rule(role=EDITOR, on=("parent",), also=_INITIALIZATION),
    "GetJob": Rule(role=VIEWER, on=("name",), service=True),
    # What is asked for by uid names no project: those that the caller may not see count as missing.
    "BatchGetJobs": Rule(role=VIEWER, on=("names",), service=True),
    "ListJobs": Rule(role=VIEWER, on=("parent",), service=True),
    "DeleteJob": Rule(role=EDITOR, on=("name",)),
    "StopJob": Rule(role=EDITOR, on=("name",)),
    "ResumeJob": Rule(role=EDITOR, on=("name",)),
    "EvaluateCheckpoint": Rule(role=EDITOR, on=("name",)),
    "WatchJobs": Rule(role=VIEWER, on=("parent",), service=True),
}
_CHECKPOINTS = {
    "ListCheckpoints": Rule(role=VIEWER, on=("parent",)),
    "GetCheckpoint": Rule(role=VIEWER, on=("name",)),
    "DownloadCheckpoint": Rule(role=VIEWER, on=("name",)),
}
_CONVERSION_REPORTS = {
    "ListConversionReports": Rule(role=VIEWER, on=("parent",)),
    "GetConversionReport": Rule(role=VIEWER, on=("name",)),
}
_RUNNER = {"Synchronize": Rule(runner="runner")}
_RUNNER_ADMIN = {
    # Say what a runner works on to those alone who may see the job.
    "ListRunners": Rule(role=VIEWER),
    "GetRunner": Rule(role=VIEWER),
    "DrainRunner": Rule(),
    "UndrainRunner": Rule(),
}
# A dataset's place and its credentials come with the request, so these calls belong to no project. They read what the
# configuration lets them (allowed_roots), with who may submit jobs somewhere.
_READ = Rule(role=EDITOR, service=True, runner=True)
_CONVERSION = {
    "ListTasks": Rule(anyone=True),
    "PlanConversion": _READ,
    "InspectDataset": _READ,
    "StreamInspection": _READ,
    "ValidateDataset": _READ,
    "ConvertDataset": _READ,
    "ImportDataset": Rule(role=EDITOR),
    "ExportDataset": Rule(role=EDITOR),
    "PreviewDataset": _READ,
    "ListImages": Rule(role=EDITOR),
    "GetImage": Rule(role=EDITOR),
}
_METRICS = {
    "ListSeries": Rule(role=VIEWER, on=("job",)),
    "QuerySeries": Rule(role=VIEWER, on=("job",)),
    "WatchMetrics": Rule(role=VIEWER, on=("job",)),
    "SummarizeJobs": Rule(role=VIEWER, on=("jobs",)),
    "CompareJobs": Rule(role=VIEWER, on=("jobs",)),
    "ExportMetrics": Rule(role=VIEWER, on=("job",)),
}
# Each writer shows its attempt's own token besides.
_INGEST = {"Ingest": Rule(runner=True)}
_LOGS = {
    "TailLogs": Rule(role=VIEWER, on=("job",)),
    "ListLogFields": Rule(role=VIEWER, on=("job",)),
}
_TOKENS = {
    "WhoAmI": Rule(anyone=True),
    # Nobody gives, sees or takes back more than they have themselves.
    "CreateToken": Rule(role=ADMIN),
    "ListTokens": Rule(role=ADMIN),
    "GetToken": Rule(role=ADMIN),
    "RevokeToken": Rule(role=ADMIN),
    "RotateTokenKey": Rule(),
    "StreamRevocations": Rule(service=True),
}
_INSTALLATION = {"GetInstallation": Rule(anyone=True)}
_REFLECTION = {"ServerReflectionInfo": Rule(anyone=True)}

ACCESS: Mapping[str, Rule] = MappingProxyType(
    {
        f"{service}/{method}": rule
        for service, rules in {
            "sihlai.scheduler.v1.ProjectService": _PROJECTS,
            "sihlai.scheduler.v1.JobService": _JOBS,
            "sihlai.scheduler.v1.CheckpointService": _CHECKPOINTS,
            "sihlai.scheduler.v1.ConversionReportService": _CONVERSION_REPORTS,
            "sihlai.runner.v1.RunnerService": _RUNNER,
            "sihlai.runner.v1.RunnerAdminService": _RUNNER_ADMIN,
            "sihlai.conversion.v1.ConversionService": _CONVERSION,
            "sihlai.metrics.v1.MetricsService": _METRICS,
            "sihlai.metrics.v1.IngestService": _INGEST,
            "sihlai.logs.v1.LogService": _LOGS,
            "sihlai.auth.v1.TokenService": _TOKENS,
            "sihlai.installation.v1.InstallationService": _INSTALLATION,
            "grpc.reflection.v1alpha.ServerReflection": _REFLECTION,
        }.items()
        for method, rule in rules.items()
    }
)
NOT_SERVED = "a method that is not served"
"""What a guard is asked instead of its name: whoever has a token is told that there is none."""
_NOBODYS = Rule(anyone=True)
OPEN_SERVICE = "grpc.health.v1.Health"
"""The one service that asks for no token."""
