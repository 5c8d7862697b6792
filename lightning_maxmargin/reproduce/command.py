"""``maxmargin reproduce``: lists the experiments, runs some or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.experiment import Experiment, read_experiment
from lightning_maxmargin.runs import make_run_dir, plan_run_dir

#: Where a clone keeps them; an installed package has none and takes the path of a YAML file.
FOLDER = Path(__file__).parents[2] / "configs" / "reproduce"


def reproduce(args: Sequence[str], trusted: bool = False) -> int:
    """Runs the papers' experiments and holds every claim against its number.

    Without names it lists them. Exit status 1 if a claim fails.

    Args:
        args: the words after ``maxmargin reproduce``.
        trusted: whether an experiment's function may lie outside this package.

    Raises:
        InputError: no such experiment, or its file is wrong.
    """
    options = _parser().parse_args(list(args))
    if not options.names:
        _list(_known())
        return 0
    chosen = [experiment for name in options.names for experiment in _find(name, trusted)]
    from lightning_maxmargin.reproduce.page import write_page
    from lightning_maxmargin.reproduce.run import print_claims, run_experiments

    out = plan_run_dir(options.out, "reproduce")
    make_run_dir(out)
    finished = run_experiments(chosen, out, options.quick)
    print_claims(finished)
    print(f"report {write_page(finished, out, options.quick)}")
    return 0 if all(row.holds for f in finished for row in f.rows) else 1


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="maxmargin reproduce",
        description="Runs the papers' experiments: claims beside published numbers, and the figures. "
        "Without names, lists them. Exit status 1 if a claim fails.",
        exit_on_error=False,
    )
    parser.add_argument("names", nargs="*", help="Experiments, 'all', or paths of YAML files like theirs.")
    parser.add_argument("--quick", action="store_true", help="Reduced settings: all of them within five minutes.")
    parser.add_argument(
        "--out", type=str | None, default=None, help="A new directory; runs/reproduce-DATE-ID if not given."
    )
    return parser


def _known() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def _find(name: str, trusted: bool) -> list[Experiment]:
    if name == "all":
        return [read_experiment(path, trusted) for path in _known()]
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        words = ", ".join(p.stem for p in _known()) or "none here: run in a clone, or name a YAML file"
        raise InputError(f"reproduce: no experiment {name!r}; known: {words}")
    return [read_experiment(path, trusted)]


def _list(paths: list[Path]) -> None:
    table = Table(title="experiments", title_justify="left")
    for column in ("name", "what it shows", "source", "claims"):
        table.add_column(column)
    for experiment in map(read_experiment, paths):
        table.add_row(experiment.name, experiment.title, experiment.source, str(len(experiment.claims)))
    Console().print(table)
