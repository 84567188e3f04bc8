"""PyTorch building blocks for vision: models, layers, losses, box operators, optimizers, trainers, transforms."""

from holocron import models, nn, ops, optim, trainer, transforms, utils

__all__ = ["models", "nn", "ops", "optim", "trainer", "transforms", "utils"]
