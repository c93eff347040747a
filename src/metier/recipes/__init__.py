"""The loop as a recipe says it: settings, stages, and the run that carries them out."""
