"""Projects and dataset sources ↔ protos.

Credentials are sealed on the way in. On the way out a user sees only whether there are some; runners and conversion get
them opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import project_service_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.chassis.objects import open_store
from services.scheduler.project import DatasetSource, Project
from services.scheduler.seal import Seal
from services.scheduler.store.projects import ProjectChange, SourceChange
from services.scheduler.wire.names import refuse, request_id_violations
from services.scheduler.wire.times import timestamp

DISPLAY_NAME_CHARACTERS_MAX = 200
URI_CHARACTERS_MAX = 2_000
CREDENTIAL_CHARACTERS_MAX = 4_000
MASK_PATHS = ("display_name", "training_dataset", "validation_dataset")


@dataclass(frozen=True, kw_only=True)
class SourceBounds:
    """Where datasets may lie: folders of this machine, and servers of object stores."""

    allowed_roots: Sequence[Path]
    allowed_hosts: Sequence[str]


def project_to_proto(project: Project) -> project_service_pb2.Project:
    """The project as users see it."""
    return project_service_pb2.Project(
        name=project.name,
        uid=project.uid,
        etag=etag_of(project.revision),
        display_name=project.display_name,
        training_dataset=source_to_proto(project.training_dataset),
        validation_dataset=_optional_source(project.validation_dataset),
        create_time=timestamp(project.create_time_us),
        update_time=timestamp(project.update_time_us),
    )


def project_violations(proto: project_service_pb2.Project, bounds: SourceBounds) -> list[Violation]:
    """What is wrong with a new project. PermissionDenied where a source lies outside the bounds."""
    found = display_name_violations(proto.display_name, "project.display_name")
    found += source_violations(proto.training_dataset, "project.training_dataset", bounds)
    if proto.HasField("validation_dataset"):
        found += source_violations(proto.validation_dataset, "project.validation_dataset", bounds)
    return found


def display_name_violations(name: str, field: str) -> list[Violation]:
    """What is wrong with a name for people."""
    if len(name) <= DISPLAY_NAME_CHARACTERS_MAX:
        return []
    description = f"has {len(name)} characters, but at most {DISPLAY_NAME_CHARACTERS_MAX} may be"
    return [Violation(field=field, description=description)]


def source_violations(source: dataset_pb2.DatasetSource, field: str, bounds: SourceBounds) -> list[Violation]:
    """What is wrong with a source. PermissionDenied where it lies outside the bounds. The dataset is not read."""
    if len(source.uri) > URI_CHARACTERS_MAX:
        description = f"has {len(source.uri)} characters, but at most {URI_CHARACTERS_MAX} may be"
        return [Violation(field=f"{field}.uri", description=description)]
    found = []
    try:
        open_store(
            source.uri,
            endpoint_url=source.endpoint_url or None,
            region=source.region,
            anonymous=True,  # nothing is read
            allowed_roots=bounds.allowed_roots,
            allowed_hosts=bounds.allowed_hosts,
        )
    except InvalidArgument as error:
        found += [Violation(field=f"{field}.{v.field}", description=v.description) for v in error.violations]
    is_local = source.uri.startswith("file:")
    if is_local and source.endpoint_url:
        found.append(Violation(field=f"{field}.endpoint_url", description="is for s3:// alone: leave it out"))
    if is_local and source.HasField("credentials"):
        found.append(Violation(field=f"{field}.credentials", description="are for s3:// alone: leave them out"))
    if source.HasField("credentials"):
        found += _credentials_violations(source.credentials, f"{field}.credentials")
    return found


def new_source_from_proto(source: dataset_pb2.DatasetSource, seal: Seal) -> SourceChange:
    """The source as the store takes it. `has_credentials` without new ones keeps those that are stored."""
    return SourceChange(
        uri=source.uri.rstrip("/"),
        endpoint_url=source.endpoint_url,
        region=source.region,
        sealed=seal.seal(source.credentials.SerializeToString()) if source.HasField("credentials") else None,
        keep=source.has_credentials,
    )


def project_change_from_proto(
    request: project_service_pb2.UpdateProjectRequest, bounds: SourceBounds, seal: Seal
) -> ProjectChange:
    """What an update changes. InvalidArgument with all that is wrong."""
    proto, paths = request.project, list(request.update_mask.paths)
    found = request_id_violations(request.request_id)
    found += [
        Violation(field="update_mask", description=f"names {path!r}, but may name {', '.join(MASK_PATHS)}")
        for path in paths
        if path not in MASK_PATHS
    ]
    if not paths:
        found.append(Violation(field="update_mask", description=f"is empty: name one of {', '.join(MASK_PATHS)}"))
    if proto.etag and _revision_of(proto.etag) is None:
        found.append(Violation(field="project.etag", description=f"is {proto.etag!r}, which no project ever had"))
    if "display_name" in paths:
        found += display_name_violations(proto.display_name, "project.display_name")
    if "training_dataset" in paths:
        found += source_violations(proto.training_dataset, "project.training_dataset", bounds)
    has_validation = proto.HasField("validation_dataset")
    if "validation_dataset" in paths and has_validation:
        found += source_violations(proto.validation_dataset, "project.validation_dataset", bounds)
    refuse(found)
    changes_validation = "validation_dataset" in paths
    return ProjectChange(
        display_name=proto.display_name if "display_name" in paths else None,
        training_dataset=new_source_from_proto(proto.training_dataset, seal) if "training_dataset" in paths else None,
        validation_dataset=new_source_from_proto(proto.validation_dataset, seal)
        if changes_validation and has_validation
        else None,
        drop_validation_dataset=changes_validation and not has_validation,
        revision=_revision_of(proto.etag) if proto.etag else None,
    )


def source_to_proto(source: DatasetSource) -> dataset_pb2.DatasetSource:
    """The source as users see it, without credentials."""
    return dataset_pb2.DatasetSource(
        uri=source.uri,
        endpoint_url=source.endpoint_url,
        region=source.region,
        has_credentials=bool(source.credentials_id),
    )


def source_with_credentials(
    source: DatasetSource, sealed: Mapping[str, bytes], seal: Seal
) -> dataset_pb2.DatasetSource:
    """The source for a runner or for conversion, its credentials opened."""
    proto = source_to_proto(source)
    if source.credentials_id in sealed:
        proto.credentials.ParseFromString(seal.open(sealed[source.credentials_id]))
    return proto


def etag_of(revision: int) -> str:
    """The etag of a state."""
    return f"{revision:x}"


def _optional_source(source: DatasetSource | None) -> dataset_pb2.DatasetSource | None:
    return source_to_proto(source) if source is not None else None


def _revision_of(etag: str) -> int | None:
    try:
        return int(etag, 16)
    except ValueError:
        return None


def _credentials_violations(credentials: dataset_pb2.Credentials, field: str) -> list[Violation]:
    """Says which part is wrong, and never what it is."""
    found = [
        Violation(field=f"{field}.{name}", description="is empty: give both parts of the key")
        for name in ("access_key_id", "secret_access_key")
        if not getattr(credentials, name)
    ]
    for name in ("access_key_id", "secret_access_key", "session_token"):
        if len(getattr(credentials, name)) > CREDENTIAL_CHARACTERS_MAX:
            description = f"is longer than {CREDENTIAL_CHARACTERS_MAX} characters"
            found.append(Violation(field=f"{field}.{name}", description=description))
    return found
