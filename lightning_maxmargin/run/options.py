"""What a command line says of a run itself, beside Trainer, model and data: options of LightningCLI and of its help."""

from __future__ import annotations

from typing import Any, Literal

WandbMode = Literal["offline", "online", "disabled"]

#: What the command line says of W&B as ``--wandb_NAME``: its type, and what it is. Each counts before W&B's variable.
WANDB_WORDS: dict[str, tuple[Any, str]] = {
    "project": (str | None, "Project of W&B; WANDB_PROJECT, else lightning-maxmargin."),
    "entity": (str | None, "User or team of W&B; WANDB_ENTITY, else W&B's own default."),
    "group": (str | None, "Group of W&B's runs that belong together; else WANDB_RUN_GROUP."),
    "job_type": (str | None, "Kind of run inside a group of W&B's; else WANDB_JOB_TYPE."),
    "tags": (list[str] | None, "Tags of the W&B run; else WANDB_TAGS."),
    "notes": (str | None, "Notes on the W&B run; else WANDB_NOTES."),
    "id": (str | None, "Id of the W&B run; WANDB_RUN_ID, else a new one."),
    "log_model": (bool | None, "Whether W&B gets checkpoints/last.ckpt as an artifact at the end."),
    "wait": (float | None, "Seconds that a run which is over waits for W&B; 8, or 600 with wandb_log_model."),
}

#: Lightning's own defaults, otherwise: of the Trainer.
TRAINER_DEFAULTS = {
    "max_steps": 10_000, "max_epochs": -1, "enable_model_summary": False, "devices": 1, "log_every_n_steps": 10,
}  # fmt: skip


def add_run_options(parser: Any) -> None:
    """The options of every run, in two groups.

    Args:
        parser: jsonargparse's, or Lightning's.
    """
    add = parser.add_argument_group("The run").add_argument
    add("--name", type=str, default="run", help="Name of the run, in its directory, report and W&B.")
    add("--run_dir", type=str | None, default=None, help="A new directory; runs/NAME-DATE-ID if not given.")
    add("--report", type=bool, default=True, help="Whether fit draws figures and writes report.html.")
    add("--timeout", type=float | None, default=None, help="Seconds that processes wait for one another before the "
        "run ends; 600 where trainer.strategy has none.")  # fmt: skip
    add("--output", type=str, default="predictions.jsonl", help="The file that predict writes.")
    add = parser.add_argument_group("Weights & Biases").add_argument
    add("--wandb", type=WandbMode | None, default=None, help="Where W&B writes: to disk (offline), to its server "
        "(online), or nowhere (disabled); WANDB_MODE, else offline.")  # fmt: skip
    for word, (kind, about) in WANDB_WORDS.items():
        add(f"--wandb_{word}", type=kind, default=None, help=about)
