"""Losses: log-probabilities in, one number out, one file per method."""
