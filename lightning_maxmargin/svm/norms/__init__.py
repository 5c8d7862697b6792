"""Norms other than the Euclidean one: their names and duals, and a solver of the working rows for each."""
