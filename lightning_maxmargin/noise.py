"""What Lightning says beside the point: its advertisements, and advice that is wrong or no news here.

Importing this package silences the messages of this file, by their own words, in Lightning's loggers and in
``warnings``. No level of a logger is changed, and a filter of your own comes first. With the environment variable
``MAXMARGIN_NOISE=1``, set before the import, all of it is as Lightning has it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

#: Set to anything but 0, Lightning says what it always says.
VARIABLE = "MAXMARGIN_NOISE"
#: Lightning's loggers that say one of :data:`LOGGED`.
LOGGERS = (
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)
#: How a silenced line of a log begins, whole where it ends in a line end.
LOGGED = (
    "💡 Tip: ",  # try litlogger, try litmodels
    "GPU available: False, used: False\n",
    "TPU available: False, using: 0 TPU cores\n",
    "Loading `train_dataloader` to estimate number of stepping batches.\n",
    "`weights_only` was not set, defaulting to `False`.\n",  # of a checkpoint that is written
)
#: Of warnings, as regular expressions.
WARNED = (
    "Starting from v1.9.0, `tensorboardX` has been removed.*",  # install lightning[extra]
    "The '.*' does not have many workers.*",  # tensors in memory are faster without
    "IProgress not found.*",  # install ipywidgets
    "Total length of `list` across ranks is zero.*",  # a data module without a validation split
    ".*treespec, LeafSpec.*",  # inside of Lightning
    # Of the full batch, which is a step an epoch.
    r"The number of training batches \(1\) is smaller than the logging interval.*",
)
#: On the command line also, where this package chooses directories and loggers, and the loop.
WARNED_OF_RUNS = (
    ".*smaller than the logging interval.*",
    ".*Experiment logs directory.*",
    ".*when using `ckpt_path`.*",
    ".*dirpath has changed.*",
    ".*anonymous setting.*",
    ".*no `validation_step`.*",
)


class Advertisements(logging.Filter):
    """Drops the records of :data:`LOGGED`.

    Example:
        >>> dropped = Advertisements()
        >>> record = logging.LogRecord("x", logging.INFO, "", 0, "TPU available: False, using: 0 TPU cores", None, None)
        >>> dropped.filter(record)
        False
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not f"{record.getMessage()}\n".startswith(LOGGED)


_ADVERTISEMENTS = Advertisements()


def is_wanted() -> bool:
    """Whether the user asks for all of it by :data:`VARIABLE`."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def silence() -> None:
    """Silences the messages of this file, once and for all of the process; nothing where :func:`is_wanted`.

    Example:
        >>> silence()
        >>> [type(x).__name__ for x in logging.getLogger(LOGGERS[0]).filters]
        ['Advertisements']
    """
    if is_wanted():
        return
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_ADVERTISEMENTS)
    for message in WARNED:
        # Behind the user's own filters, which count first.
        warnings.filterwarnings("ignore", message, append=True)


def silence_runs() -> None:
    """What the command line silences: all of this file."""
    if is_wanted():
        return
    silence()
    for message in (*WARNED, *WARNED_OF_RUNS):
        warnings.filterwarnings("ignore", message)


def expect_in_eval(count: int) -> None:
    """Silences Lightning's warning that exactly so many modules are in eval mode, where a frozen encoder has them.

    Of any other number it is heard.
    """
    _expect(f"Found {count} module(s) in eval mode at the start of training.")


def expect_no_validation() -> None:
    """Silences the warnings that a step of validation and its loader are not both there.

    The modules and data modules of this package have theirs whether there is a validation split or not.
    """
    _expect("You passed in a `val_dataloader` but have no `validation_step`.")
    _expect("You defined a `validation_step` but have no `val_dataloader`.")


def _expect(beginning: str) -> None:
    if not is_wanted():
        warnings.filterwarnings("ignore", re.escape(beginning), append=True)
