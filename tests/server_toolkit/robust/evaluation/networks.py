"""Small models: one whose robustness is a formula, a sound one, and ones that mislead attacks."""

import numpy as np
import torch
from torch import nn

CLASSES, SIDE = 4, 6
EPSILON = 0.09
GRID = 1 / 8  # the pixels of all blobs are multiples of it


def threshold_model():
    """Class 1 where the mean pixel is above 0.5: robust exactly to |mean - 0.5| > epsilon."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[1].bias.copy_(torch.tensor([2.0, -2.0]))
    return model


def grey(levels):
    return np.stack([np.full((1, 2, 2), level, np.float32) for level in levels])


def blobs(count, *, seed):
    """Noisy copies of a prototype a class: images (N, 1, 6, 6) on a coarse grid, and labels.

    The corner pixel is 0.5 in all of them.
    """
    prototypes = np.random.default_rng(0).uniform(-0.15, 0.15, (CLASSES, 1, SIDE, SIDE))
    prototypes += np.linspace(0.3, 0.7, CLASSES)[:, None, None, None]
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = prototypes[labels] + rng.normal(0, 0.2, (count, 1, SIDE, SIDE))
    images = np.clip(np.round(images / GRID), 0, 8) * GRID
    images[..., 0, 0] = 0.5
    return images.astype(np.float32), labels


class BlindCorner(nn.Module):
    """Hides the corner pixel, which has no slope then and stays where an attack starts."""

    def forward(self, x):
        hidden = torch.zeros_like(x)
        hidden[..., 0, 0] = 1
        return x * (1 - hidden)


def sound_model():
    """A small network, trained on noisy blobs, that masks nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        BlindCorner(),
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )
    images, labels = (torch.from_numpy(a) for a in blobs(400, seed=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        moved = (images + 0.05 * torch.randn(images.shape)).clamp(0, 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(moved), labels).backward()
        optimizer.step()
    return model.eval()


def saturated(model):
    """Logits so large that the softmax is exact and the cross-entropy has no slope."""
    return lambda x: 1e5 * model(x)


def quantised(model):
    """Pixels rounded before the model sees them: no slope anywhere."""
    return lambda x: model(torch.round(x / GRID) * GRID)


def alive_where(model, alive):
    """The model's outputs, with a slope only at images (N, C, H, W) that are `alive` (N,)."""

    def outputs(x):
        logits = model(x)
        return torch.where(alive(x)[:, None], logits, logits.detach())

    return outputs


def off_grid(x):
    """How far the pixels lie from the grid of the clean images, on average, (N,)."""
    return (x - torch.round(x / GRID) * GRID).abs().flatten(1).mean(1).detach()


def corner(x):
    """The corner pixel (N,)."""
    return x[:, 0, 0, 0].detach()


class LateGradient:
    """A model whose slope points backwards on the first steps of every walk."""

    def __init__(self, model, *, steps):
        self.model, self.steps, self.walked = model, steps, 0

    def __call__(self, x):
        self.walked = self.walked + 1 if torch.is_grad_enabled() and x.requires_grad else 0
        logits = self.model(x)
        return logits if self.walked > self.steps else 2 * logits.detach() - logits
