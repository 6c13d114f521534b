"""Loops: what one step of a method does. Checkpoints, metrics and ending are in `training.py`."""
