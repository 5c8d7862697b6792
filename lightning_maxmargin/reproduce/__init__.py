"""The papers' experiments, one command each: claims beside published numbers, and the figures."""
