"""Layouts in which people keep feedback: TRL's dataset types, Argilla, Label Studio, tables of crowd labels."""
