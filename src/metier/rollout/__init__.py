"""Episodes: a model and its tools, sampled turn by turn."""
