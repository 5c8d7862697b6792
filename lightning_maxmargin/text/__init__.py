"""Sequences made of text: encoders, their cache, and data sets."""

from lightning_maxmargin.text.planted import PlantedText

__all__ = ["PlantedText"]
