"""Losses that an attack ascends: one value an image, positive differences meaning misclassified."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy `(N,)` of class indices `(N,)` or probabilities `(N, classes)`."""
    return cross_entropy(logits, labels, reduction="none")


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{i != y} z_i - z_y `(N,)`, positive where misclassified."""
    chosen = labels[:, None]
    others = logits.scatter(1, chosen, float("-inf"))
    return others.amax(1) - logits.gather(1, chosen)[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio `(N,)` (Croce & Hein 2020, eq. 6).

    (max_{i != y} z_i - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest logit: neither shift nor
    scale of the logits changes it. Needs three classes; with two, the difference alone.
    """
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    margin = margins(logits, labels)
    return margin / (top[:, 0] - top[:, 2] + TINY) if top.shape[1] == 3 else margin


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio `(N,)` (Croce & Hein 2020, eq. 7).

    (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2). Needs four classes; with three the denominator is
    that of `dlr`, with two there is none.
    """
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    difference = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
    if top.shape[1] == 4:
        return difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)
    return difference / (top[:, 0] - top[:, 2] + TINY) if top.shape[1] == 3 else difference


TINY = 1e-12  # keeps 0/0 of equal logits finite
