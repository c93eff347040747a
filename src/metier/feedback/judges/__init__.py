"""Judges: models that say how good a response is, under a written rubric; and the audit of their word."""
