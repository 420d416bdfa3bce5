"""The example that stands beside a model: the whole one, without the functions of tasks that it does not have."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

EXAMPLE = Path(__file__).with_name("example.py")


def function_of(task: str) -> str:
    """The name of the example's function that says what a head of this task found."""
    return task.replace(" ", "_").replace("-", "_")


def excerpt(tasks: Iterable[str]) -> str:
    """The text of a program for heads of these tasks."""
    source = EXAMPLE.read_text()
    body = ast.parse(source).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    wanted: set[str] = set()
    waiting = {function_of(task) for task in tasks}
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        named = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        waiting |= (named & functions.keys()) - wanted
    lines = source.splitlines(keepends=True)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and node.name not in wanted:
            assert after is not None, "the program ends with what calls them"
            lines[node.lineno - 1 : after.lineno - 1] = [""] * (after.lineno - node.lineno)
    return "".join(lines)
