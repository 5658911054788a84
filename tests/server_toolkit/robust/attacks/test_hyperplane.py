"""Projections onto a hyperplane within [0, 1] against linear and quadratic programs."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from server_toolkit.robust.attacks.hyperplane import to_hyperplane

SIZE = 6


def task(count, *, share, dtype=torch.float64, seed=0):
    """Points, normals, and rises that need `share` of all that the box allows."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand((count, SIZE), generator=generator, dtype=dtype)
    points[:, 0] = 0  # pixels that can move one way only
    points[:, 1] = 1
    normals = torch.randn((count, SIZE), generator=generator, dtype=dtype)
    normals[:, 2] = 0
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).to(dtype)
    room = torch.where(normals * signs[:, None] > 0, 1 - points, points)
    return points, normals, signs * share * (normals.abs() * room).sum(1)


def least_linf(x, w, rise):
    """min s, |d| <= s, <w, d> = rise, x + d in [0, 1]."""
    cost = np.r_[np.zeros(SIZE), 1.0]
    above = np.c_[np.eye(SIZE), -np.ones(SIZE)]
    below = np.c_[-np.eye(SIZE), -np.ones(SIZE)]
    bounds = [(-a, 1 - a) for a in x] + [(0, None)]
    solution = linprog(
        cost,
        A_ub=np.r_[above, below],
        b_ub=np.zeros(2 * SIZE),
        A_eq=[np.r_[w, 0.0]],
        b_eq=[rise],
        bounds=bounds,
    )
    assert solution.success
    return solution.fun


def least_l2(x, w, rise):
    solution = minimize(
        lambda d: d @ d,
        rise * w / (w @ w),
        jac=lambda d: 2 * d,
        bounds=[(-a, 1 - a) for a in x],
        constraints={"type": "eq", "fun": lambda d: w @ d - rise, "jac": lambda _: w},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solution.success
    return np.sqrt(solution.fun)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(("norm", "solver"), [("linf", least_linf), ("l2", least_l2)])
def test_change_is_the_shortest_that_reaches_the_plane_within_the_box(norm, solver, share):
    points, normals, rise = task(10, share=share)
    change = to_hyperplane(points, normals, rise, norm)
    torch.testing.assert_close((normals * change).sum(1), rise)
    assert (points + change).min() >= -1e-12
    assert (points + change).max() <= 1 + 1e-12
    order = torch.inf if norm == "linf" else 2
    for x, w, needed, size in zip(
        points.numpy(), normals.numpy(), rise.numpy(), change.norm(p=order, dim=1), strict=True
    ):
        assert float(size) == pytest.approx(solver(x, w, needed), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_the_box_in_reach_the_formula_holds(norm):
    points, normals, _ = task(10, share=0.0)
    points = torch.full_like(points, 0.5)
    rise = torch.linspace(-1e-3, 1e-3, 10, dtype=torch.float64)
    change = to_hyperplane(points, normals, rise, norm)
    if norm == "linf":
        expected = rise[:, None] * normals.sign() / normals.abs().sum(1, keepdim=True)
    else:
        expected = rise[:, None] * normals / normals.square().sum(1, keepdim=True)
    torch.testing.assert_close(change, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_out_of_reach_the_change_goes_to_the_nearest_corner(norm, dtype):
    points, normals, rise = task(10, share=1.5, dtype=dtype)
    end = points + to_hyperplane(points, normals, rise, norm)
    corner = (normals * rise.sign()[:, None] > 0).to(dtype)
    corner[:, 2] = points[:, 2]  # no use in moving it
    torch.testing.assert_close(end, corner)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_to_reach_or_no_normal_changes_nothing(norm):
    points, normals, rise = task(4, share=0.5)
    still = to_hyperplane(points, normals, torch.zeros_like(rise), norm)
    assert torch.equal(still, torch.zeros_like(points))
    flat = to_hyperplane(points, torch.zeros_like(normals), rise, norm)
    assert torch.equal(flat, torch.zeros_like(points))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25])
def test_the_length_of_the_normal_does_not_matter(norm, scale):
    points, normals, rise = task(10, share=0.5)
    points, normals, rise = points.float(), (normals * scale).float(), (rise * scale).float()
    points[:, 3] = 0.5
    expected = to_hyperplane(points, normals / scale, rise / scale, norm)
    change = to_hyperplane(points, normals, rise, norm)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_out_of_reach_of_a_tiny_normal_is_no_nan(norm):
    points, normals, _ = task(10, share=0.5)
    points, normals = points.float(), (normals * 1e-40).float()
    end = points + to_hyperplane(points, normals, torch.full((10,), 3.0), norm)
    corner = torch.where(normals == 0, points, (normals > 0).float())
    torch.testing.assert_close(end, corner)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_float32_of_image_size_agrees_with_float64(norm):
    generator = torch.Generator().manual_seed(1)
    points = torch.rand((20, 784), generator=generator).round(decimals=1)
    normals = torch.randn((20, 784), generator=generator) ** 3
    rise = torch.linspace(-20, 20, 20)
    single = to_hyperplane(points, normals, rise, norm)
    double = to_hyperplane(points.double(), normals.double(), rise.double(), norm)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-6)
