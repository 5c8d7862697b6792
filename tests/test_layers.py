"""Mathematics below, Lightning above, one way up: read off the import statements of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import lightning_maxmargin

PACKAGE = "lightning_maxmargin"
ROOT = Path(lightning_maxmargin.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"}
#: Seconds to import, or not installed with the package: imported where they are used.
HEAVY = {"transformers", "datasets", "wandb", "cvxpy", "clarabel", "matplotlib", "tokenizers", "sklearn"}
#: What stands above everything else and is imported by nothing below it.
ABOVE = {"modules", "callbacks", "run", "ensemble", "paths", "reproduce", "kept", "cli", "__main__"}
BELOW = {"core", "optim", "svm", "metrics", "data", "text", "probe", "figures", "errors", "atomic", "keys"}
BELOW |= {"html_table", "noise"}


class Import(NamedTuple):
    """One imported module, and whether importing the file runs it."""

    name: str
    line: int
    at_import: bool
    for_types: bool


@cache
def imports(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), path, True, False))


def _walk(node: ast.AST, path: Path, at_import: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_import, for_types)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            # `from package import name` may import a module of that name: both count.
            yield Import(base, child.lineno, at_import, for_types)
            if base == PACKAGE:
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", child.lineno, at_import, for_types)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, path, False, for_types)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _walk(child, path, False, True)
        else:
            yield from _walk(child, path, at_import, for_types)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parents = (PACKAGE, *path.relative_to(ROOT).parent.parts)
    return ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])


def room(path: Path) -> str:
    """core, svm, ...; the name of the file for files that stand alone."""
    name = path.relative_to(ROOT).with_suffix("").parts[0]
    return "" if name == "__init__" else name


def of_package(name: str) -> str | None:
    """The room that an import leads to."""
    parts = name.split(".")
    if parts[0] != PACKAGE or len(parts) < 2:
        return None
    return parts[1]


def offences(rooms: set[str], forbidden: set[str]) -> list[str]:
    """Imports, also within functions, that lead to a forbidden distribution."""
    return [
        f"{path.relative_to(ROOT)}:{i.line} {i.name}"
        for path in MODULES
        if room(path) in rooms
        for i in imports(path)
        if i.name.split(".")[0] in forbidden
    ]


def strays(name: str, allowed: set[str]) -> list[str]:
    """Imports from a room that lead to other rooms than the allowed ones; those for types alone do not run."""
    found = [(p, i) for p in MODULES if room(p) == name for i in imports(p) if not i.for_types]
    return [
        f"{p.relative_to(ROOT)}:{i.line} {i.name}"
        for p, i in found
        if (i.name.split(".")[0] == PACKAGE) and of_package(i.name) not in allowed and i.name != PACKAGE
    ]


def test_the_rooms_are_there() -> None:
    rooms = {"core", "svm", "optim", "metrics", "data", "text", "modules", "probe", "callbacks", "run", "figures"}
    assert rooms | {"paths", "reproduce", "errors", "atomic", "cli"} <= {room(p) for p in MODULES}


def test_core_is_pure_torch() -> None:
    assert offences({"core"}, LIGHTNING | HEAVY | {"torchmetrics", "jsonargparse", "numpy", "scipy"}) == []
    assert strays("core", {"core", "errors", "atomic", "html_table"}) == []


def test_svm_knows_no_lightning() -> None:
    assert offences({"svm"}, LIGHTNING | {"torchmetrics", "wandb", "jsonargparse", "transformers"}) == []
    assert strays("svm", {"svm", "core", "errors", "html_table"}) == []


def test_optim_knows_no_attention() -> None:
    assert offences({"optim"}, LIGHTNING | HEAVY | {"torchmetrics", "jsonargparse"}) == []
    assert strays("optim", {"optim", "core", "errors"}) == []


def test_metrics_know_no_lightning() -> None:
    assert offences({"metrics"}, LIGHTNING | HEAVY | {"jsonargparse"}) == []
    assert strays("metrics", {"metrics", "core", "errors"}) == []


def test_a_probe_knows_no_lightning() -> None:
    assert offences({"probe"}, LIGHTNING | {"torchmetrics", "wandb", "jsonargparse", "transformers"}) == []
    assert strays("probe", {"probe", "core", "svm", "metrics", "errors", "keys"}) == []


def test_data_hold_no_model() -> None:
    assert strays("data", {"data", "core", "errors", "html_table"}) == []
    assert f"{PACKAGE}.core.model" not in {i.name for p in MODULES if room(p) == "data" for i in imports(p)}


def test_text_reads_and_measures_and_trains_nothing() -> None:
    """Lightning knows it by its data alone; it solves no SVM."""
    below = {"data", "core", "metrics", "probe", "figures", "errors", "atomic", "html_table"}
    assert strays("text", {"text", *below}) == []
    lightning = {p.name for p in MODULES if room(p) == "text" for i in imports(p) if i.name.split(".")[0] in LIGHTNING}
    assert lightning == {"data.py"}


def test_text_holds_one_model() -> None:
    """Everything else takes it, or hidden states, as they are given."""
    room_of_text = [p for p in MODULES if room(p) == "text"]
    assert [p.name for p in room_of_text if "TokenSelector" in p.read_text(encoding="utf-8")] == ["model.py"]


def test_errors_atomic_and_keys_are_the_ground() -> None:
    assert [i.name for i in imports(ROOT / "errors.py") if i.name != "__future__"] == []
    assert strays("html_table", set()) == strays("noise", set()) == []
    assert strays("atomic", {"errors"}) == []
    assert strays("keys", {"errors"}) == []


def test_nothing_below_imports_what_stands_above() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{i.line} {i.name}"
        for path in MODULES
        if room(path) in BELOW
        for i in imports(path)
        if of_package(i.name) in ABOVE
    ]
    assert found == []


def test_only_main_imports_the_command_line() -> None:
    assert {room(p) for p in MODULES for i in imports(p) if of_package(i.name) == "cli"} <= {"cli", "__main__"}


def test_rooms_have_no_cycle() -> None:
    """Imports within functions count; those for types alone do not run."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        targets = {of_package(i.name) for i in imports(path) if not i.for_types}
        graph.setdefault(room(path), set()).update(t for t in targets if t and t != room(path))
    graph.pop("", None)  # the package itself offers the rooms' names, on first use
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, targets in graph.items() if name not in done and targets & set(graph) <= done}
        assert ready, f"a cycle among {sorted(set(graph) - done)}"
        done |= ready


def test_heavy_imports_wait_until_they_are_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{i.line} {i.name}"
        for path in MODULES
        for i in imports(path)
        if i.at_import and i.name.split(".")[0] in HEAVY
    ]
    # The model inherits from transformers; test_the_data_of_text_load_no_model says that it waits itself.
    assert {name.split(":")[0] for name in found} <= {"text/model.py"}
    assert {name.split()[1].split(".")[0] for name in found} <= {"transformers"}


@pytest.mark.parametrize(
    "source", ["import wandb", "try:\n    import wandb\nexcept ImportError: pass", "class A:\n    import wandb"]
)
def test_the_reader_sees_imports_that_run(tmp_path: Path, source: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(source)
    assert [(i.name, i.at_import) for i in imports(path)] == [("wandb", True)]


@pytest.mark.parametrize("source", ["def f():\n    import wandb", "if TYPE_CHECKING:\n    import wandb"])
def test_the_reader_sees_imports_that_wait(tmp_path: Path, source: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(source)
    assert [(i.name, i.at_import) for i in imports(path)] == [("wandb", False)]


#: Run one after another by a fresh interpreter.
IMPORTS = {
    "package": f"import {PACKAGE}",
    "mathematics": f"from {PACKAGE} import TokenSelector, solve_att_svm, solve_joint_svm; import {PACKAGE}.optim",
    "theirs": "import pytorch_lightning, torchmetrics",
    "module": f"from {PACKAGE} import JointSelection, MarginMonitor; from {PACKAGE}.data import PaperData",
    "text": f"from {PACKAGE} import TextData; import {PACKAGE}.run.lightning_cli",
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The modules that a fresh interpreter holds after each of the imports and those before it."""
    code = "\n".join(["import sys", *(f"{line}\nprint(*sys.modules)" for line in IMPORTS.values())])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name: set(line.split()) for name, line in zip(IMPORTS, done.stdout.splitlines(), strict=True)}


def top(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_importing_the_package_costs_nothing(loaded: dict[str, set[str]]) -> None:
    assert top(loaded["package"]) & (HEAVY | LIGHTNING) == set()


def test_solvers_and_mathematics_come_without_lightning(loaded: dict[str, set[str]]) -> None:
    found = top(loaded["mathematics"])
    assert "torch" in found
    assert found & (HEAVY | LIGHTNING | {"torchmetrics"}) == set()


def test_importing_the_module_loads_nothing_heavy(loaded: dict[str, set[str]]) -> None:
    """What Lightning and torchmetrics load themselves is theirs."""
    assert HEAVY & (loaded["module"] - loaded["theirs"]) == set()
    assert f"{PACKAGE}.modules" in loaded["module"]


def test_the_data_of_text_load_no_model(loaded: dict[str, set[str]]) -> None:
    assert f"{PACKAGE}.text.data" in loaded["text"]
    assert {f"{PACKAGE}.text.model", f"{PACKAGE}.modules.text"} & loaded["text"] == set()
    assert HEAVY & (loaded["text"] - loaded["theirs"]) == set()
