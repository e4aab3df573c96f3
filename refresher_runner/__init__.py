"""refresher: a config-driven experiment runner for deep learning that reads like the papers it runs."""

__version__ = "0.1.0"
