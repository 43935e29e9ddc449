"""Activation functions of layers: on the host in float64, on devices as clips and tables."""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, ndtr

__all__ = ["FUNCTIONS", "apply"]

FUNCTIONS: dict[str, Callable] = {
    "relu": lambda y: np.maximum(y, 0),
    "silu": lambda y: y * expit(y),
    "gelu": lambda y: y * ndtr(y),      # the exact one, not its approximation by tanh
    "exp": np.exp,
}
"""What a layer's `activation` can be, by name: functions of float64 arrays."""


def apply(name, y):
    """Apply the function `name` to an array; None leaves it as it is."""
    return y if name is None else FUNCTIONS[name](y)
