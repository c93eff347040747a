"""Training: pure objectives, packed batches, one loop, fp32 master weights and checkpoints."""
