"""A status is given in one place and the gap is written once: read off the package's own syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_maxmargin
from lightning_maxmargin.svm.certificate import Status

ROOT = Path(lightning_maxmargin.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
NAMES = {status.name for status in Status}
WORDS = {status.value for status in Status}
BUILT = {"Solution", "BatchSolution"}


def walk(node: ast.AST, function: str = "", compared: bool = False) -> Iterator[tuple[ast.AST, str, bool]]:
    """Every node, the innermost function it stands in, and whether it is part of a comparison."""
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        within = compared or isinstance(child, ast.Compare)
        yield child, inside, within
        yield from walk(child, inside, within)


def gives_status(node: ast.AST, compared: bool) -> bool:
    """Whether a node names one status, other than to compare with it, or makes one of a word."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Status":
        return node.attr in NAMES and not compared
    if isinstance(node, ast.keyword) and node.arg == "status" and isinstance(node.value, ast.Constant):
        return node.value.value in WORDS
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Status"


def is_one_less_a_power(node: ast.AST) -> bool:
    """``1 - x`` with a power in x."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Constant)):
        return False
    powers = [part for part in ast.walk(node.right) if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow)]
    return node.left.value == 1 and bool(powers)


def found(source: str, kind: str) -> list[str]:
    """The functions in which a status is given, an answer is built, or the gap is written."""
    places = []
    for node, function, compared in walk(ast.parse(source)):
        builds = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILT
        if {"status": gives_status(node, compared), "answer": builds, "gap": is_one_less_a_power(node)}[kind]:
            places.append(function)
    return places


def everywhere(kind: str, under: str = "") -> set[tuple[str, str]]:
    paths = [path for path in MODULES if str(path.relative_to(ROOT)).startswith(under)]
    return {
        (str(path.relative_to(ROOT)), place)
        for path in paths
        for place in found(path.read_text(encoding="utf-8"), kind)
    }


def test_only_one_function_gives_a_status() -> None:
    assert everywhere("status") == {("svm/certificate.py", "status_of")}


def test_answers_are_built_in_one_file() -> None:
    assert {path for path, _ in everywhere("answer")} == {"svm/solution.py"}


def test_the_gap_is_written_once() -> None:
    assert everywhere("gap", "svm/") == {("svm/certificate.py", "relative_gap")}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("status", "def f():\n    return Status.CERTIFIED if good else Status.UNVERIFIED"),
        ("status", "def f():\n    return replace(solution, status=Status.INFEASIBLE)"),
        ("status", "def f():\n    return replace(solution, status='certified')"),
        ("status", "def f():\n    return Status('certified')"),
        ("answer", "def f():\n    return Solution(status, direction)"),
        ("gap", "def f():\n    return 1 - (b @ lam / size * smallest / length) ** 2"),
        ("gap", "def f():\n    return 1.0 - min((value * smallest) ** 2 / below, 2)"),
    ],
)
def test_the_search_finds_what_it_looks_for(kind: str, source: str) -> None:
    assert set(found(source, kind)) == {"f"}
    assert not found("def f():\n    return solution.status is Status.CERTIFIED and 1 - spare / tau", kind)
