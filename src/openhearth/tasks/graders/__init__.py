"""Graders: one small file each, (problem, response) -> verdict."""
