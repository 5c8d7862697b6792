"""``python -m lightning_maxmargin`` is ``maxmargin``."""

from lightning_maxmargin.cli import command

if __name__ == "__main__":
    command()
