"""Running what a model wrote, apart from everything else."""
