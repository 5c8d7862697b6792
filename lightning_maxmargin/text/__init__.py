"""Sequences made of text: encoders, their cache, and data sets."""

from lightning_maxmargin.text.encoders import Encoder, StaticEncoder, find_encoder
from lightning_maxmargin.text.planted import PlantedText

__all__ = ["Encoder", "PlantedText", "StaticEncoder", "find_encoder"]
