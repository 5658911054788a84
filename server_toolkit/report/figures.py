"""Figures as strings to put into a page: SVG for curves, PNG data URLs for images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

# Okabe and Ito's colours: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"

Point = tuple[float, float, float]  # accuracy, then its 95 % interval, all in [0, 1]


def accuracy_by_round(accuracies: Sequence[float]) -> str:
    """Return the test accuracy of the weights that each round started from, as SVG."""
    figure, axes = new_axes("round", "clean accuracy, %")
    percent = [100 * a for a in accuracies]
    axes.plot(range(len(percent)), percent, marker="o", color=COLOURS[0], lw=2)
    axes.annotate(
        f"{percent[-1]:.1f}", (len(percent) - 1, percent[-1]), (0, -16),
        textcoords="offset points", ha="center",
    )  # fmt: skip
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return as_svg(figure)


def robustness_by_epsilon(
    curves: Mapping[str, Mapping[float, Point]],
    *,
    attack: str = "PGD-20",
    norm: str = "l∞",
    marked: Sequence[float] = (),
) -> str:
    """Return accuracy over the attack's size for every arm, with 95 % intervals, as SVG.

    Sizes that are `marked` get a dotted line.
    """
    figure, axes = new_axes(f"attack size ε ({norm}, pixels in [0, 1])", f"{attack} accuracy, %")
    for size in marked:
        axes.axvline(size, color="#5b6573", lw=1, ls=":")
    for index, (name, curve) in enumerate(curves.items()):
        sizes = sorted(curve)
        middle = [100 * curve[e][0] for e in sizes]
        low = [100 * curve[e][1] for e in sizes]
        high = [100 * curve[e][2] for e in sizes]
        colour, marker = COLOURS[index % 7], MARKERS[index % 7]
        # Names may come from files: "$" begins no formula.
        label = name.replace("$", r"\$")
        axes.plot(sizes, middle, marker=marker, color=colour, lw=2, label=label)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.12, lw=0)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False)
    return as_svg(figure)


def image_grid(
    images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, columns: int, scale: int = 3
) -> str:
    """Return up to `columns` images of every class, a row a class, as a PNG data URL.

    `images` is `(N, C, H, W) float32 in [0, 1]`, `labels` `(N,)`.
    """
    _, channels, height, width = images.shape
    classes = np.unique(labels)
    gap = 1
    grid = np.ones((len(classes) * (height + gap), columns * (width + gap), channels), np.float32)
    for row, label in enumerate(classes):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = row * (height + gap), column * (width + gap)
            grid[top : top + height, left : left + width] = images[index].transpose(1, 2, 0)
    pixels = np.rint(255 * np.clip(grid, 0, 1)).astype(np.uint8)
    return _png(pixels, scale)


def one_image(image: npt.NDArray[np.float32], *, scale: int = 3) -> str:
    """Return one image `(C, H, W) float32 in [0, 1]` as a PNG data URL."""
    return _png(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0), scale)


def _png(pixels: npt.NDArray[np.uint8], scale: int) -> str:
    """Return `(H, W, 1 or 3)` as a PNG data URL, every pixel a square of `scale` pixels."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def new_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty plot in the style of all pages."""
    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def as_svg(figure: Figure) -> str:
    """Return the figure as SVG to put into a page; the same figure gives the same text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "trajsyn"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
