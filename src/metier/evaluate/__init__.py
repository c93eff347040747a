"""Measuring checkpoints on suites of tasks that training never sees."""
