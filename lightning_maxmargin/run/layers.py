"""``maxmargin layers``: the table of key layers, the choice in words, and the command that trains it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_maxmargin.atomic import refuse_existing, write_output
from lightning_maxmargin.errors import check_seed
from lightning_maxmargin.run.directory import versions
from lightning_maxmargin.run.parsers import layers_parser
from lightning_maxmargin.text.columns import Recipe
from lightning_maxmargin.text.data import TextData
from lightning_maxmargin.text.layers import LayerTable, compare_layers


def layers(args: Sequence[str]) -> None:
    """Compares key layers: a table, the choice in words, and the command that trains it.

    Args:
        args: argv after ``maxmargin layers``.

    Raises:
        InputError: settings or documents that cannot be used.
    """
    config = layers_parser().parse_args(list(args))
    output = None if config.output is None else Path(config.output)
    if output is not None:
        refuse_existing(output)
    check_seed(config.seed, "--seed")
    given = dict(vars(config.data))
    # As fit seeds its validation split: then it finds these hidden states in the cache.
    data = TextData(**given, seed=config.seed)
    found = compare_layers(data, config.folds, config.seed, replace(Recipe(), epochs=config.epochs), config.select)
    command = fit_command(given, found.chosen.layer, config.seed)
    _print(found, command)
    if output is not None:
        settings = {"data": given, "folds": config.folds, "epochs": config.epochs, "seed": config.seed}
        content = {**found.as_json(), "fit": command, "settings": settings, "versions": versions()}
        write_output(output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        print(output)


def fit_command(given: dict[str, Any], layer: int, seed: int = 0) -> str:
    """The command line that trains this key layer on the same documents.

    Args:
        given: options of the data; those that are the defaults are left out.
        layer: of the keys.
        seed: of the run.

    Example:
        >>> fit_command({"train": "my reviews.csv", "label": "label"}, 4)
        "maxmargin fit --config text/finetune --data.train 'my reviews.csv' --data.key_layer 4"
    """
    default = vars(layers_parser().get_defaults().data)
    words = ["maxmargin", "fit", "--config", "text/finetune"]
    for name, value in given.items():
        if value != default[name]:
            words += [f"--data.{name}", str(value)]
    words += ["--data.key_layer", str(layer)]
    return shlex.join(words + (["--seed_everything", str(seed)] if seed else []))


def _print(found: LayerTable, command: str) -> None:
    seconds = f"{found.seconds['encoding']:.1f} s encoding, {found.seconds['training']:.1f} s training"
    marked = f", {found.marked:,} of them marked by people" if found.marked else ""
    print(f"{found.documents:,} documents{marked}; {seconds}")
    table = Table()
    for name in (
        "layer",
        "accuracy",
        "± over folds",
        "AUPRC",
        "median lead",
        "sum of ranks" if "+" in found.rule else "rank",
    ):
        if name != "AUPRC" or found.marked:
            table.add_column(name, justify="right")
    for row, rank in zip(found.rows, found.rank_sums, strict=True):
        cells = [f"{row.layer}", f"{row.accuracy:.4f}", f"{row.deviation:.4f}"]
        cells += [_cell(row.auprc)] if found.marked else []
        table.add_row(*cells, _cell(row.lead), f"{rank:g}", style="bold" if row is found.chosen else None)
    Console(width=max(100, Console().width)).print(table)
    print("\n".join([*found.words(), "", command]))


def _cell(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"
