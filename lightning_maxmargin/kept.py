"""The public address of :func:`several_tokens`."""

from lightning_maxmargin.reproduce.several_tokens import SeveralTokens, several_tokens

__all__ = ["SeveralTokens", "several_tokens"]
