"""``maxmargin reproduce``: lists the experiments, runs some or all of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.experiment import Experiment, read_experiment
from lightning_maxmargin.run.directory import make_run_dir, plan_run_dir
from lightning_maxmargin.run.parsers import reproduce_parser
from lightning_maxmargin.run.shipped import find_config, shipped_folder

FOLDER = shipped_folder() / "reproduce"


def reproduce(args: Sequence[str], trusted: bool = False) -> int:
    """Runs the papers' experiments and holds every claim against its number.

    Without names it lists them. Exit status 1 if a claim fails.

    Args:
        args: argv after ``maxmargin reproduce``.
        trusted: whether an experiment's function may lie outside this package.

    Raises:
        InputError: no such experiment, or its file is wrong.
    """
    options = reproduce_parser().parse_args(list(args))
    if not options.names:
        _list(_known())
        return 0
    chosen = _read(options.names, trusted)
    for experiment in chosen:
        experiment.require(options.quick)
    return _run(chosen, _new_directory(options.out), options.quick)


def _run(chosen: list[Experiment], out: Path, quick: bool) -> int:
    """Runs them; also where one fails, table and page of those before it are written."""
    from lightning_maxmargin.reproduce.page import write_page
    from lightning_maxmargin.reproduce.run import Finished, print_claims, run_experiments

    finished: list[Finished] = []

    def reached() -> str:
        return f"; {len(finished)} of {len(chosen)} experiments finished" + (f", see {out}" if finished else "")

    interrupted = False
    try:
        run_experiments(chosen, out, quick, finished)
    except InputError as error:
        raise InputError(f"{error}{reached()}") from error
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if finished:
            print_claims(finished)
            print(f"report {write_page(finished, out, quick)}")
        elif not any(out.iterdir()):
            out.rmdir()
    if interrupted:
        print(f"maxmargin: error: interrupted{reached()}", file=sys.stderr)
    return 1 if interrupted or not all(row.holds for f in finished for row in f.rows) else 0


def _new_directory(wanted: str | None) -> Path:
    try:
        out = plan_run_dir(wanted, "reproduce")
        make_run_dir(out)
    except InputError as error:
        # Other commands call it run_dir.
        raise InputError(str(error).replace("run_dir: ", "--out: ").replace("--run_dir", "--out")) from error
    return out


def _known() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def _read(names: Sequence[str], trusted: bool) -> list[Experiment]:
    """Each file once, in the order named."""
    found: dict[str, Path] = {}
    for path in (path for name in names for path in _find(name)):
        # Each writes into a folder of its name.
        if not path.samefile(found.setdefault(path.stem, path)):
            raise InputError(f"reproduce: {found[path.stem]} and {path} have one name; run them one after the other")
    return [read_experiment(path, trusted) for path in found.values()]


def _find(name: str) -> list[Path]:
    if name == "all":
        return _known()
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError(f"reproduce: {name} is no file; name a Python file with an EXPERIMENT")
        return [Path(name)]
    if name.endswith((".yaml", ".yml")):
        return [Path(find_config(name))]
    path = FOLDER / f"{name}.yaml"
    if path not in _known():
        known = ", ".join(p.stem for p in _known())
        raise InputError(f"reproduce: no experiment {name!r}; known: {known}")
    return [path]


def _list(paths: list[Path]) -> None:
    table = Table(title="experiments", title_justify="left")
    for column in ("name", "what it shows", "source", "claims"):
        table.add_column(column)
    for experiment in map(read_experiment, paths):
        table.add_row(experiment.name, experiment.title, experiment.source, str(len(experiment.claims)))
    Console().print(table)
