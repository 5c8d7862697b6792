"""``maxmargin fit | validate | test | predict | path | reproduce | report``: the commands, with one-line errors."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_maxmargin.data import SequenceData
from lightning_maxmargin.errors import InputError, NonFiniteError
from lightning_maxmargin.modules.ensemble import Ensemble
from lightning_maxmargin.modules.joint import JointSelection
from lightning_maxmargin.run.config_errors import allow_imports, is_input, one_line
from lightning_maxmargin.run.directory import RUN_DIR_VARIABLE
from lightning_maxmargin.run.lightning_cli import MarginCLI, RunConfig

TRUST = "--trust-config"
ABOUT = "Max-margin token selection in attention."
COMMANDS = {
    "fit": "Trains, watches both margins against their SVMs, and ends with a table and a report.",
    "validate": "Measures a checkpoint on the validation split.",
    "test": "Measures a checkpoint on the test split.",
    "predict": "Writes logits, attention and selected token of every sequence as JSON lines.",
}
MORE = {
    "path": "Solves a regularisation path: --config configs/paths/....yaml.",
    "reproduce": "Lists the papers' experiments, or runs one of them or all.",
    "report": "Draws the figures and the report of a finished run again: report RUN_DIR.",
}
DEFAULTS = {
    "max_steps": 10_000, "max_epochs": -1, "enable_model_summary": False, "devices": 1, "log_every_n_steps": 10,
}  # fmt: skip


def report(args: Sequence[str]) -> None:
    """``maxmargin report RUN_DIR``: draws the figures and writes ``report.html`` of a finished run again."""
    from jsonargparse import ArgumentParser

    from lightning_maxmargin.figures.report import write_report

    parser = ArgumentParser(prog="maxmargin report", description=report.__doc__, exit_on_error=False)
    parser.add_argument("run_dir", type=str, help="The directory of the run.")
    print(write_report(Path(parser.parse_args(list(args)).run_dir)))


def overview() -> str:
    """What ``maxmargin --help`` prints: LightningCLI's own help knows only the commands of a Trainer."""
    lines = [f"  {name:<11}{words}" for name, words in {**COMMANDS, **MORE}.items()]
    end = [
        "Start with: maxmargin fit --config configs/joint/relaxed.yaml",
        f"Classes of your own in a config or --data need {TRUST}: naming one runs its module.",
        "More of each: maxmargin COMMAND --help",
    ]
    return "\n".join(["usage: maxmargin COMMAND ...", "", ABOUT, "", *lines, "", *end])


def main(args: Sequence[str] | None = None) -> int:
    """The command ``maxmargin``. Exit status 0, 1 (training failed or was interrupted) or 2 (bad input)."""
    words = list(sys.argv[1:] if args is None else args)
    trusted = TRUST in words
    allow_imports(trusted)
    if trusted and os.getcwd() not in sys.path:
        # As python -m does it: a class in a file of the directory that one is in.
        sys.path.insert(0, os.getcwd())
    # LightningCLI reads sys.argv itself, also in the processes that a launcher starts with the same words.
    sys.argv[1:] = words = [w for w in words if w != TRUST]
    _quiet()
    try:
        if words in (["--help"], ["-h"]):
            print(overview())
        elif not words or not (words[0].startswith("-") or words[0] in {**COMMANDS, **MORE}):
            said = f"{words[0]} is no command" if words else "a command is missing"
            raise InputError(f"{said}; one of {', '.join({**COMMANDS, **MORE})} (maxmargin --help)")
        elif words[:1] == ["report"]:
            report(words[1:])
        elif words[:1] == ["path"]:
            from lightning_maxmargin.paths.command import path

            path(words[1:])
        elif words[:1] == ["reproduce"]:
            from lightning_maxmargin.reproduce.command import reproduce

            return reproduce(words[1:], trusted)
        else:
            cli(words)
    except KeyboardInterrupt:
        return _interrupted(words)
    except SystemExit as stopped:
        # Lightning turns an interrupt before the first step into exit(1).
        return _interrupted(words) if stopped.code == 1 else int(stopped.code or 0)
    except NonFiniteError as error:
        return _fail(str(error), 1)
    except MisconfigurationException as error:
        # Lightning's own word for a trainer that cannot be: no such accelerator, strategy or optimizer.
        return _fail(" ".join(str(error).split()), 2)
    except (InputError, ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, TypeError | ValueError) and not is_input(error):
            raise
        return _fail(one_line(error, MarginCLI.latest_parser, (JointSelection, Ensemble)), 2)
    return 0


def cli(words: Sequence[str]) -> MarginCLI:
    """Parses the words and runs their command."""
    strict: dict[str, Any] = {"exit_on_error": False}
    commands = {name: {**strict, "description": COMMANDS[name]} for name in MarginCLI.subcommands()}
    return MarginCLI(
        pl.LightningModule,
        SequenceData,
        save_config_callback=RunConfig,
        seed_everything_default=0,
        trainer_defaults=DEFAULTS,
        parser_kwargs={"prog": "maxmargin", "description": ABOUT, **strict, **commands},
        subclass_mode_data=True,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
    )


def _interrupted(words: Sequence[str]) -> int:
    if words[:1] != ["fit"]:
        return _fail("interrupted; run the command again", 1)
    run_dir = Path(os.environ.get(RUN_DIR_VARIABLE, "."))
    if not (run_dir / "checkpoints" / "last.ckpt").is_file():
        return _fail("interrupted before there was a checkpoint; run the command again", 1)
    words = f"maxmargin fit --config {run_dir}/config.yaml --ckpt_path {run_dir}/checkpoints/last.ckpt"
    return _fail(f"interrupted; go on in a new run directory with: {words}", 1)


def _fail(message: str, status: int) -> int:
    print(f"maxmargin: error: {message}", file=sys.stderr)
    return status


def _quiet() -> None:
    """Lightning's advertisements and its advice on loaders are not for these runs."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for advice in (
        ".*does not have many workers.*",
        ".*Total length of `list`.*",
        ".*treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*Experiment logs directory.*",
        ".*when using `ckpt_path`.*",
        ".*dirpath has changed.*",
        ".*anonymous setting.*",
        ".*no `validation_step`.*",
    ):
        warnings.filterwarnings("ignore", advice)
