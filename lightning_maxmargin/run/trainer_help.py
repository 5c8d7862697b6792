"""The short help of fit, validate, test and predict: what a run is told most often, without importing Lightning."""

from __future__ import annotations

from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser

from lightning_maxmargin.run.options import TRAINER_DEFAULTS, add_run_options

TRAINER: dict[str, tuple[Any, str]] = {
    "max_steps": (int, "Steps of training."),
    "max_epochs": (int, "Passes over the data; -1 for no limit."),
    "max_time": (str, "DD:HH:MM:SS."),
    "accelerator": (str, "cpu, gpu, ... or auto."),
    "devices": (int, "How many of it, a process each."),
    "strategy": (str, "ddp, fsdp, ..."),
    "precision": (str, "64-true, 32-true, bf16-mixed, ..."),
    "accumulate_grad_batches": (int, "Batches of a step."),
    "gradient_clip_val": (float, "Largest norm of a gradient."),
    "log_every_n_steps": (int, "Steps from one row of metrics to the next."),
    "callbacks": (str, "A class; --trainer.callbacks.KEY VALUE sets its arguments."),
    "enable_progress_bar": (bool, "Whether progress is shown."),
}
MONITOR: dict[str, tuple[Any, str]] = {
    "sources": (str, "auto: watches the attention heads of a module of your own."),
    "layers": (str, "Which of these layers, by a pattern or a part of their names."),
    "per_decade": (int, "Evaluations per factor of ten in steps."),
    "every_n_epochs": (int, "Evaluations by epochs instead."),
    "split": (str, "Which split of the data is measured."),
    "samples": (int, "Sequences of an evaluation before the last."),
    "budget": (float, "Share of the run's time that it may take."),
    "background": (bool, "Whether training goes on meanwhile."),
}


def trainer_help(command: str, about: str, more: str) -> str:
    """The help of one of these commands.

    Args:
        command: its name.
        about: what it does.
        more: the command line that prints every option.
    """
    usage = f"maxmargin {command} [--config FILE_OR_NAME] [--KEY VALUE ...]"
    end = f"Every option, with all of the Trainer's: {more}"
    # What is suppressed has the default that Lightning or the class gives it.
    parser = ArgumentParser(prog="maxmargin", usage=usage, description=about, add_help=False, epilog=end)
    add = parser.add_argument_group("What to do").add_argument
    add("--config", metavar="FILE_OR_NAME", default=SUPPRESS, help="YAML of any of these keys, or the name of a config "
        "that comes with the package: joint/relaxed. Later ones and words count before it.")  # fmt: skip
    add(
        "--ckpt_path",
        metavar="FILE",
        default=SUPPRESS,
        help="A checkpoint to go on from or to measure; last is that of --run_dir.",
    )
    add("--seed_everything", type=int, default=0, help="Of all random numbers.")
    add("--print_config", metavar="", default=SUPPRESS, help="Prints all keys as they now are, and ends.")
    _add_classes(parser)
    add_run_options(parser)
    if command == "fit":
        add = parser.add_argument_group("Monitor of both margins, and the table of tokens").add_argument
        _add(add, "monitor", MONITOR, {})
        add("--tokens.examples", type=int, default=SUPPRESS, help="Examples in the table.")
    _add(parser.add_argument_group("Lightning's Trainer").add_argument, "trainer", TRAINER, TRAINER_DEFAULTS)
    return parser.format_help()


def _add_classes(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("Model and data").add_argument
    add(
        "--model",
        metavar="CLASS",
        default=SUPPRESS,
        help="JointSelection unless given; Ensemble, TextSelection, or one of your own.",
    )
    add("--model.KEY", metavar="VALUE", default=SUPPRESS, help="An argument of it, as --model.attention_lr .1.")
    add("--model.help", metavar="CLASS", default=SUPPRESS, help="Prints its arguments.")
    add("--data", metavar="CLASS", default=SUPPRESS, help="PaperData, RandomData, TensorData, RandomInstances, "
        "TextData, PlantedText, or one of your own.")  # fmt: skip
    add("--data.KEY", metavar="VALUE", default=SUPPRESS, help="An argument of it, as --data.path FILE.")
    add("--data.help", metavar="CLASS", default=SUPPRESS, help="Prints its arguments.")


def _add(add: Any, of: str, keys: dict[str, tuple[Any, str]], defaults: dict[str, Any]) -> None:
    for key, (kind, about) in keys.items():
        add(f"--{of}.{key}", type=kind, default=defaults.get(key, SUPPRESS), help=about)
