"""The report of a run: figures and one HTML page, made from the files of its directory alone."""

from lightning_maxmargin.figures.draw import draw_figures
from lightning_maxmargin.figures.read import RunFiles
from lightning_maxmargin.figures.report import write_report

__all__ = ["RunFiles", "draw_figures", "write_report"]
