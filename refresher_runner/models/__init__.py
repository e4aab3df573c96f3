"""One file per paper, named as in `model=<name>`."""
