"""Projects and dataset sources ↔ protos.

Credentials are sealed on the way in. On the way out a user sees only whether there are some; runners and conversion get
them opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import project_service_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.chassis.objects.key import key_violations
from services.chassis.objects.store import open_store
from services.chassis.text import text_violations
from services.scheduler.domain.project import (
    CredentialsChange,
    DatasetSource,
    Project,
    ProjectChange,
    SourceChange,
)
from services.scheduler.seal import Seal
from services.scheduler.wire.names import refuse, request_id_violations
from services.scheduler.wire.times import timestamp

DISPLAY_NAME_CHARACTERS_MAX = 200
URI_CHARACTERS_MAX = 2_000
MASK_PATHS_SHOWN_MAX = 20
_ETAG = re.compile("[0-9a-f]{1,16}")
DATASETS = ("training_dataset", "validation_dataset")
MASK_PATHS = ("display_name", *DATASETS, *(f"{dataset}.credentials" for dataset in DATASETS))


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
    return text_violations(name, field, characters_max=DISPLAY_NAME_CHARACTERS_MAX)


def source_violations(source: dataset_pb2.DatasetSource, field: str, bounds: SourceBounds) -> list[Violation]:
    """What is wrong with a source. PermissionDenied where it lies outside the bounds. The dataset is not read."""
    found = text_violations(source.uri, f"{field}.uri", characters_max=URI_CHARACTERS_MAX)
    found += text_violations(source.endpoint_url, f"{field}.endpoint_url", characters_max=URI_CHARACTERS_MAX)
    if found:
        return found
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
        found.append(Violation(field=f"{field}.endpoint_url", description="is for buckets alone: leave it out"))
    if source.HasField("credentials"):
        found += key_violations(source.credentials, f"{field}.credentials", source.uri)
    return found


def new_source_from_proto(source: dataset_pb2.DatasetSource, seal: Seal) -> SourceChange:
    """The source as the store takes it."""
    return SourceChange(
        uri=source.uri.rstrip("/"),
        endpoint_url=source.endpoint_url,
        region=source.region,
        sealed=sealed_credentials(source, seal),
    )


def source_from_proto(source: dataset_pb2.DatasetSource) -> DatasetSource:
    """The source without its credentials."""
    return DatasetSource(uri=source.uri.rstrip("/"), endpoint_url=source.endpoint_url, region=source.region)


def project_change_from_proto(
    request: project_service_pb2.UpdateProjectRequest, bounds: SourceBounds, seal: Seal
) -> ProjectChange:
    """What an update changes. InvalidArgument with all that is wrong."""
    proto, paths = request.project, list(request.update_mask.paths)
    found = request_id_violations(request.request_id)
    found += [
        Violation(field="update_mask", description=f"names {path[:200]!r}, but may name {', '.join(MASK_PATHS)}")
        for path in sorted(set(paths))[:MASK_PATHS_SHOWN_MAX]
        if path not in MASK_PATHS
    ]
    if not paths:
        found.append(Violation(field="update_mask", description=f"is empty: name one of {', '.join(MASK_PATHS)}"))
    if proto.etag and _revision_of(proto.etag) is None:
        found.append(Violation(field="project.etag", description="is one that no project ever had: read it again"))
    if "display_name" in paths:
        found += display_name_violations(proto.display_name, "project.display_name")
    drops_validation = "validation_dataset" in paths and not proto.HasField("validation_dataset")
    for dataset in DATASETS:
        source: dataset_pb2.DatasetSource = getattr(proto, dataset)
        if dataset in paths and not (dataset == "validation_dataset" and drops_validation):
            found += source_violations(source, f"project.{dataset}", bounds)
        elif f"{dataset}.credentials" in paths and source.HasField("credentials"):
            found += key_violations(source.credentials, f"project.{dataset}.credentials")
    refuse(found)
    return ProjectChange(
        display_name=proto.display_name if "display_name" in paths else None,
        training_dataset=_source_change(proto.training_dataset, "training_dataset", paths, seal),
        validation_dataset=None
        if drops_validation
        else _source_change(proto.validation_dataset, "validation_dataset", paths, seal),
        drop_validation_dataset=drops_validation,
        revision=_revision_of(proto.etag) if proto.etag else None,
    )


def source_to_proto(source: DatasetSource) -> dataset_pb2.DatasetSource:
    """The source as users see it, without credentials."""
    return dataset_pb2.DatasetSource(
        uri=source.uri,
        endpoint_url=source.endpoint_url,
        region=source.region,
        credentials_stored=bool(source.credentials_id),
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


def _source_change(
    source: dataset_pb2.DatasetSource, dataset: str, paths: Sequence[str], seal: Seal
) -> SourceChange | CredentialsChange | None:
    """What the mask says of one dataset: all of it, its credentials alone, or nothing."""
    names_credentials = f"{dataset}.credentials" in paths
    if dataset in paths:
        change = new_source_from_proto(source, seal)
        return replace(change, drop=names_credentials and change.sealed is None)
    return CredentialsChange(sealed=sealed_credentials(source, seal)) if names_credentials else None


def sealed_credentials(source: dataset_pb2.DatasetSource, seal: Seal) -> bytes | None:
    """The source's own credentials, sealed; None where it brings none."""
    if not source.HasField("credentials"):
        return None
    given = dataset_pb2.Credentials()
    given.CopyFrom(source.credentials)
    given.DiscardUnknownFields()
    return seal.seal(given.SerializeToString())


def _optional_source(source: DatasetSource | None) -> dataset_pb2.DatasetSource | None:
    return source_to_proto(source) if source is not None else None


def _revision_of(etag: str) -> int | None:
    return int(etag, 16) if _ETAG.fullmatch(etag) else None
