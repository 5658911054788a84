"""What every attack needs of a model: logits, and gradients of a loss with respect to pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from server_toolkit.errors import ConfigError

Model = Callable[[Tensor], Tensor]
"""Maps images `(N, C, H, W) float32 in [0, 1]` to logits `(N, classes)`."""

CPU_BATCH, GPU_BATCH = 64, 512
"""Images that go through the model at once, unless told otherwise: what fits a CPU's caches, and
what keeps a GPU busy."""

Loss = Callable[..., Tensor]
"""Maps logits `(N, classes)`, labels, and what else it needs of each image, to one loss an image
`(N,)`, larger for a better attack."""


def loss_gradient(
    model: Model, images: Tensor, loss: Loss, *labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, losses `(N,)` and the losses' pixel gradient from one pass each way.

    `labels` are the loss's further arguments. Raises `ConfigError` for a model whose logits carry
    no gradient.
    """
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        losses = loss(logits, *labels)
    if not losses.requires_grad:
        raise ConfigError(
            "the model's logits carry no gradient: attack it with square, "
            "or craft on a torch model and transfer"
        )
    # A sum, not a mean: one image's gradient must not depend on the batch's size.
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return logits.detach(), losses.detach(), gradient


def loss_gradients(
    model: Model, images: Tensor, loss: Loss, *labels: Tensor, batch_size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `loss_gradient` does, for any number of images."""
    parts = [
        loss_gradient(model, images[part], loss, *(label[part] for label in labels))
        for part in _batches(images, batch_size)
    ]
    if len(parts) == 1:
        return parts[0]
    logits, losses, gradients = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(losses), torch.cat(gradients)


def slices(count: int, batch_size: int) -> Iterator[slice]:
    """Split `count` images into the fewest batches of at most `batch_size`, all about as large.

    No images are one empty batch, so that results have the right shape.
    """
    batches = max(-(-count // batch_size), 1)
    for batch in range(batches):
        yield slice(batch * count // batches, (batch + 1) * count // batches)


def _batches(images: Tensor, batch_size: int | None) -> Iterator[slice]:
    usual = CPU_BATCH if images.device.type == "cpu" else GPU_BATCH
    return slices(len(images), batch_size or usual)


def predict(model: Model, images: Tensor, *, batch_size: int | None) -> Tensor:
    """Return the logits of any number of images, without gradients."""
    with torch.no_grad():
        parts = [model(images[part]) for part in _batches(images, batch_size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
