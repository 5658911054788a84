"""Models of which the robustness is known, and one trained on digits."""

import torch
from sklearn.datasets import load_digits

from server_toolkit.robust.attacks import pgd


def linear_model(weight, bias=None):
    """Logits W x + b of flattened images."""
    classes, pixels = weight.shape
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, classes))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(torch.zeros(classes) if bias is None else bias)
    return model.eval().requires_grad_(False)


def linear_task(*, classes=4, channels=1, count=12, seed=0, edges=False):
    """A linear model of 4x4 images, images of pixels near 0.5 or mostly at edges, its answers."""
    generator = torch.Generator().manual_seed(seed)
    pixels = channels * 16
    weight = torch.randn((classes, pixels), generator=generator)
    images = torch.rand((count, channels, 4, 4), generator=generator)
    if edges:
        images = torch.where(images < 0.4, 0.03, torch.where(images > 0.6, 0.97, images))
    else:
        images = 0.4 + 0.2 * images
    model = linear_model(weight, -weight.mean(1) * pixels / 2)
    return model, images, model(images).argmax(1)


def distance_to_boundary(model, images, labels, norm, *, box=True):
    """The least norm of a change within [0, 1] that turns a linear model's answer, by bisection."""
    weight = model[1].weight.double()
    x = images.flatten(1).double()
    logits = x @ weight.T + model[1].bias.double()
    least = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for other in range(len(weight)):
        w = weight[other] - weight[labels]
        gap = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        room = torch.where(w > 0, 1 - x, x) if box else torch.full_like(x, 1e6)
        speed = (w != 0).double() if norm == "linf" else w.abs()
        low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e3).double()
        for _ in range(100):
            middle = (low + high) / 2
            enough = (w.abs() * torch.minimum(middle * speed, room)).sum(1) >= gap
            low = torch.where(enough[:, None], low, middle)
            high = torch.where(enough[:, None], middle, high)
        change = torch.minimum(high * speed, room)
        size = change.amax(1) if norm == "linf" else change.norm(dim=1)
        reached = (w.abs() * change).sum(1) >= gap - 1e-9
        size = torch.where(reached & (labels != other), size, torch.inf)
        least = torch.minimum(least, size)
    return least


def digits():
    """scikit-learn's digits 0 to 4 as `(N, 1, 8, 8)` in [0, 1], and their labels."""
    data = load_digits(n_class=5)
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def digit_model(*, hardened):
    """A small convolutional network, trained plainly or on PGD images of epsilon 0.15."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(16, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(512, 5),
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(200, len(images), (64,), generator=generator)
        x, y = images[rows], labels[rows]
        if hardened:
            x = pgd(model, x, y, epsilon=0.15, steps=2, step_size=0.1, generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)
