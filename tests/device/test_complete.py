"""Every public name is run on the device by a test, or is said to have nothing to do with one."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning_maxmargin

ROOT = Path(lightning_maxmargin.__file__).parent
#: Entry points of rooms that have no ``__all__``.
OTHERS = (
    "callbacks.text_monitor.TextMonitor", "text.model.MaxMarginForSequenceClassification", "text.pooled.PoolingModel",
)  # fmt: skip
#: Why a name needs no device.
WITHOUT: dict[str, str] = {
    "core.find_loss": "names", "core.register_loss": "names", "core.register_update": "names", "register_key": "names",
    "svm.register_norm": "names", "metrics.ERASER_BINS": "numbers", "metrics.relative_margin": "of two floats",
    "svm.WorkingRows": "arrays of numpy, made by the solvers", "svm.solve_cvxpy": "a problem of cvxpy",
    "text.Encoder": "vectors of words, made on the CPU", "text.StaticEncoder": "vectors of words, made on the CPU",
    "text.find_encoder": "vectors of words, made on the CPU",
    "data.ModuleLoaders": "hands on the loaders of a user's module, and makes no tensor",
    "data.PlantedText": "a SequenceData, of vectors made on the CPU", "text.PlantedText": "the same",
    "figures.RunFiles": "files", "figures.draw_figures": "files", "figures.write_report": "files",
    "callbacks.RankWatch": "a thread that asks the processes' store",
    "callbacks.Predictions": "a file of arrays that the trainer has fetched",
    "optim.PowerDecay": "rates alone", "callbacks.StopAtLimit": "the rows that a MarginMonitor has on the CPU",
    "kept.SeveralTokens": "an experiment on the CPU", "kept.several_tokens": "an experiment on the CPU",
}  # fmt: skip


def public() -> set[str]:
    """Names by the module that lists them in ``__all__``; the package's own by themselves."""
    found = set(OTHERS)
    for path in ROOT.rglob("*.py"):
        if "__all__" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            module = importlib.import_module(".".join(filter(None, ("lightning_maxmargin", name))))
            found |= {f"{name}.{entry}" if name else entry for entry in module.__all__}
    homes = {f"{home}.{name}" for name, home in lightning_maxmargin._HOMES.items()}
    # What the package offers is what a room offers already.
    return {name for name in found if not any(home.endswith(f".{name}") and home in found for home in homes)}


def files() -> list[ModuleType]:
    here = sorted(Path(__file__).parent.glob("test_*.py"))
    return [importlib.import_module(f"tests.device.{path.stem}") for path in here]


def covered() -> dict[str, ModuleType]:
    """The names that tests say they run, each with the file of its test."""
    return {
        name: module for module in files() for test in vars(module).values() for name in getattr(test, "covers", ())
    }


def test_every_public_name_has_a_test_on_the_device() -> None:
    found = covered()
    assert sorted(public() - set(found) - set(WITHOUT)) == []


def test_no_name_is_listed_that_is_not_there() -> None:
    names = public() | set(lightning_maxmargin.__all__)
    assert sorted(set(WITHOUT) - names) == []
    assert sorted(set(covered()) - names) == []
    assert sorted(set(WITHOUT) & set(covered())) == []


def test_a_test_uses_what_it_says_it_covers() -> None:
    unused = []
    for name, module in covered().items():
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        if name.rsplit(".", 1)[-1] not in _words(tree):
            unused.append(name)
    assert unused == []


def _words(tree: ast.AST) -> set[str]:
    """Identifiers, attributes and strings outside of the decorators; of a string the part before a comma."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "covers":
            return
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.split(",")[0])
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree)
    return found
