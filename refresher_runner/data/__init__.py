"""Data sets: one file per kind of batch."""
