"""Traces of a model at work, as other systems write them, into episodes and feedback."""
