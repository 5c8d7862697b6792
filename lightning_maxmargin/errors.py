"""The errors a user can meet, each one clear line."""

from __future__ import annotations

#: The largest seed: of 32 bits, as Lightning and numpy take them.
LARGEST_SEED = 2**32 - 1


class InputError(ValueError):
    """The input is wrong: the message says what, where, and what to do. The command line exits with status 2."""


def check_seed(seed: int, name: str) -> int:
    """The seed, where every generator takes it: torch, numpy and Python differ in what they refuse.

    Raises:
        InputError: it is negative, or has more than 32 bits.

    Example:
        >>> check_seed(3, "data.seed")
        3
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"{name}: {seed}; expected a number from 0 to {LARGEST_SEED}")
    return seed


class NonFiniteError(ArithmeticError):
    """Training met NaN or Inf and stopped before the weights were touched. The command line exits with status 1."""


class OutputError(OSError):
    """What a run must leave cannot be written; the message says what, and why. The command line exits with status 1."""


class RankError(RuntimeError):
    """One of several processes failed, was killed or did not answer, and its rank has been printed.

    Args:
        message: which rank, and why.
        status: with which the command line exits.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
