"""Objectives: pure functions from log-probabilities to a loss, one file each."""
