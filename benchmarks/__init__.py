"""Measurements against hand-written loops and peers. `make bench` runs them all and prints ratios."""
