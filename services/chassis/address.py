"""Addresses with a user and a password in them, as logs and errors may show them: without."""

from __future__ import annotations


def without_password(url: str) -> str:
    """The address without what stands before its host and without a query; for addresses that were found to be some.

    All up to the last `@` goes: a password may hold one, or a slash, that nobody quoted. Never show one that could not
    be read: what looks like its host may be a password.
    """
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}" if separator else ""
