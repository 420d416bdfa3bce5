"""A project: what a team trains on."""

from __future__ import annotations

from msgspec import Struct


class DatasetSource(Struct, frozen=True, kw_only=True):
    """Where a dataset is. `credentials_id` names a row of sealed credentials; empty where there are none."""

    uri: str
    endpoint_url: str = ""
    region: str = ""
    credentials_id: str = ""

    def same_place(self, other: DatasetSource | None) -> bool:
        """Whether credentials for the one may be used for the other: the same folder on the same server."""
        return other is not None and (self.uri, self.endpoint_url) == (other.uri, other.endpoint_url)


class Project(Struct, frozen=True, kw_only=True):
    """A project. `revision` changes with every change; `served` is the revision of the last claim of a job of it."""

    uid: str
    project_id: str
    display_name: str
    training_dataset: DatasetSource
    validation_dataset: DatasetSource | None
    create_time_us: int
    update_time_us: int
    revision: int = 0
    served: int = 0

    @property
    def name(self) -> str:
        """The resource name."""
        return f"projects/{self.project_id}"


class SourceChange(Struct, frozen=True, kw_only=True):
    """A dataset source as a caller gives it. `sealed`: new credentials. `drop`: those that are stored go."""

    uri: str
    endpoint_url: str = ""
    region: str = ""
    sealed: bytes | None = None
    drop: bool = False


class CredentialsChange(Struct, frozen=True, kw_only=True):
    """New credentials for a source that stays where it is; None: those that are stored go."""

    sealed: bytes | None


class ProjectChange(Struct, frozen=True, kw_only=True):
    """What an update changes; None leaves a field as it is."""

    display_name: str | None = None
    training_dataset: SourceChange | CredentialsChange | None = None
    validation_dataset: SourceChange | CredentialsChange | None = None
    drop_validation_dataset: bool = False
    revision: int | None = None
    """The state that the caller has seen; None changes whatever is there."""
