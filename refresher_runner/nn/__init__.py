"""Bricks that two papers or more use."""
