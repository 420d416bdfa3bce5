"""Datasets and checkpoints to this disk and from it.

`provision` with `conversion` and `download`; `upload`, `conversion_report`.
"""
