"""Names as people type them."""

import pytest

from services.client.name import NameFormatError, checkpoint_name, job_name, project_name, short


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("digits/first", "projects/digits/jobs/first"),
        ("projects/digits/jobs/first", "projects/digits/jobs/first"),
        ("a/b-2", "projects/a/jobs/b-2"),
    ],
)
def test_a_short_job_name_becomes_the_full_one(text: str, name: str) -> None:
    assert job_name(text) == name


@pytest.mark.parametrize(
    "text", ["digits", "digits/", "Digits/first", "digits/first/more", "projects/digits", "", "a/-"]
)
def test_what_cannot_be_a_job_name_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(NameFormatError, match="digits/first"):
        job_name(text)


@pytest.mark.parametrize(
    ("text", "checkpoint"),
    [
        ("digits/first", "last"),
        ("projects/digits/jobs/first", "last"),
        ("digits/first/best", "best"),
        ("digits/first/3-100", "3-100"),
        ("projects/digits/jobs/first/checkpoints/final", "final"),
    ],
)
def test_a_checkpoint_name_without_its_last_part_is_the_last_one(text: str, checkpoint: str) -> None:
    assert checkpoint_name(text) == f"projects/digits/jobs/first/checkpoints/{checkpoint}"


def test_a_checkpoint_that_cannot_be_is_refused() -> None:
    with pytest.raises(NameFormatError):
        checkpoint_name("digits/first/newest")


def test_a_short_name_is_what_was_typed() -> None:
    assert short(project_name("digits")) == "digits"
    assert short(checkpoint_name("digits/first/3-100")) == "digits/first/3-100"
