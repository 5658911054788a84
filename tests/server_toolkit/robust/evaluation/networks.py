"""Small models whose robustness is a formula."""

import numpy as np
import torch
from torch import nn


def threshold_model():
    """Class 1 where the mean pixel is above 0.5: robust exactly to |mean - 0.5| > epsilon."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[1].bias.copy_(torch.tensor([2.0, -2.0]))
    return model


def grey(levels):
    return np.stack([np.full((1, 2, 2), level, np.float32) for level in levels])
