"""Training: optimizers, the learning rate schedule, and the loop."""
