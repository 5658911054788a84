"""The nearest point of a hyperplane inside [0, 1], for FAB (Croce & Hein 2020, appendix)."""

from __future__ import annotations

import torch
from torch import Tensor

from server_toolkit.robust.attacks.result import Norm

MAX_ROUNDS = 100


def to_hyperplane(points: Tensor, normals: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """Return the shortest change d with <w, d> = `rise` that stays in [0, 1].

    `points` and the `normals` w are `(N, D)`, `points` in [0, 1]; `rise` `(N,)`. Where [0, 1] does
    not reach the hyperplane, d goes to the corner nearest to it.

    Coordinate i moves by min(t g_i, room_i) towards the hyperplane, with g = 1 in l∞ and g = |w| in
    l2. So <w, d> is a concave, piecewise linear function of t, and Newton's method from t = 0 ends
    in its root, exactly and from below, after a few rounds.
    """
    steep = normals.abs()
    longest = steep.amax(1).clamp_(min=torch.finfo(points.dtype).tiny)
    steep = steep / longest[:, None]  # a gradient of 1e-30 is squared below
    towards = normals.sign() * torch.where(rise < 0, -1.0, 1.0)[:, None]
    room = torch.where(towards > 0, 1 - points, points)
    speed = (steep > 0).to(points.dtype) if norm == "linf" else steep
    wanted = torch.minimum(rise.abs() / longest, (steep * room).sum(1))
    exact = 16 * torch.finfo(points.dtype).eps * wanted
    t = torch.zeros_like(wanted)
    for _ in range(MAX_ROUNDS):
        reach = t[:, None] * speed
        missing = wanted - (steep * torch.minimum(reach, room)).sum(1)
        slope = (steep * speed * (reach < room)).sum(1)
        unfinished = (missing > exact) & (slope > 0)
        if not unfinished.any():
            break
        t = torch.where(unfinished, t + missing / slope, t)
    return towards * torch.minimum(t[:, None] * speed, room)
