"""Networks small enough to compute by hand, in float64."""

import torch
from torch import nn

IMAGES = torch.tensor([[0.2, 0.7, 0.4], [0.9, 0.1, 0.5]], dtype=torch.float64).view(2, 1, 1, 3)
ADVERSARIAL = torch.tensor([[0.3, 0.6, 0.5], [0.8, 0.2, 0.6]], dtype=torch.float64).view(2, 1, 1, 3)
HARD = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.float64)
SOFT = torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
SCALE = 4.0


def scaled_pixels():
    """Three pixels in, their fourfold out as logits: every loss is a formula of the pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(SCALE * torch.eye(3, dtype=torch.float64))
    return model


def curved():
    """A network with a matrix, a bias and a bend, for derivatives."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
