"""Square attack: random search by squares, from scores alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from server_toolkit.robust.attacks.losses import margins
from server_toolkit.robust.attacks.model import Model, predict
from server_toolkit.robust.attacks.result import AttackResult, Norm
from server_toolkit.robust.attacks.square_proposals import (
    Proposal,
    l2_proposal,
    l2_start,
    linf_proposal,
    linf_start,
)
from server_toolkit.robust.attacks.working_set import Standing, drop_fallen, seeded, wrong

QUERIES = 5000
P_INIT = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after these proposals
DRAWN_AT_ONCE = 50  # proposals of which the random numbers are drawn together


def square(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    queries: int = QUERIES,
    p_init: float = P_INIT,
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """Attack `images` `(N, C, H, W) float32 in [0, 1]` by random search on the margin.

    `labels` `(N,)` are class indices. Every proposal changes a square window of an image; it is
    kept if it lowers the margin. The first `queries` proposals count, also those that happen to
    change nothing, which the model is not asked about. The windows cover the share `p_init` of the
    image at first and follow the schedule for 10,000 queries, as in AutoAttack. Needs no gradient.
    """
    standing = Standing(model, images, labels, batch_size=batch_size)
    places = standing.indices()
    if len(places) == 0:
        return standing.result()
    generator = seeded(seed)
    image, label = images[places], labels[places]
    start = (linf_start if norm == "linf" else l2_start)(image, epsilon, generator)
    logits = predict(model, start, batch_size=batch_size)
    state = _Searchers(
        place=places,
        row=torch.arange(len(places), device=images.device),
        image=image,
        label=label,
        best=start,
        loss=margins(logits, label),
        fell=wrong(logits, label),
    )
    propose = linf_proposal if norm == "linf" else l2_proposal
    for query, uniform in enumerate(_draws(queries, image, generator)):
        state = drop_fallen(state, standing, state.fell, state.best)
        if len(state.place) == 0:
            return standing.result()
        side = window_side(query, image.shape, p_init=p_init, norm=norm)
        proposal = propose(state.image, state.best, epsilon, side, uniform[state.row])
        _try(model, state, proposal, batch_size)
    drop_fallen(state, standing, state.fell, state.best)
    return standing.result()


def window_side(query: int, shape: tuple[int, ...], *, p_init: float, norm: Norm) -> int:
    """Return the side in pixels of the window that proposal number `query` (from 0) changes.

    `p_init` is halved after each of HALVINGS. l2 windows have an odd side of at least 3, because
    their two halves differ; no window is larger than the image `shape` `(N, C, H, W)`.
    """
    height, width = shape[-2:]
    share = p_init / 2 ** sum(query > after for after in HALVINGS)
    side = round(math.sqrt(share * height * width))
    if norm == "l2":
        side = max(side, 3) | 1
    return min(max(side, 1), height, width)


@dataclass
class _Searchers:
    """One row an image that is still attacked."""

    place: Tensor  # among all images
    row: Tensor  # among those that were attacked, for the random numbers
    image: Tensor
    label: Tensor
    best: Tensor
    loss: Tensor  # the margin of `best`, negative while the answer is right
    fell: Tensor  # whether the answer to `best` is wrong


def _draws(queries: int, images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield uniform numbers `(N, 5 + C)` for each query: two windows' places, turn, signs.

    Every image draws for itself, whether it still stands or not, so that dropping changes nothing.
    """
    count, channels = images.shape[:2]
    for first in range(0, queries, DRAWN_AT_ONCE):
        size = (min(DRAWN_AT_ONCE, queries - first), count, 5 + channels)
        yield from torch.rand(size, generator=generator).to(images.device)


def _try(model: Model, state: _Searchers, proposal: Proposal, batch_size: int | None) -> None:
    """Ask the model about the proposals and keep those that raise the loss or turn the answer."""
    rows, candidates = proposal
    if len(rows) == 0:
        return
    logits = predict(model, candidates, batch_size=batch_size)
    losses, label = margins(logits, state.label[rows]), state.label[rows]
    fell = wrong(logits, label)
    better = fell | (losses > state.loss[rows])
    state.best[rows[better]] = candidates[better]
    state.loss[rows[better]] = losses[better]
    state.fell[rows] |= fell
