"""A proxy set as one picture, to be looked at while it is learned."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from edge_sdk.protocol.part_file import write_durably
from server_toolkit.distill.initial_images import Images

TILE_SIDE = 48  # at least; small images are enlarged by a whole factor
GAP = 4
MARGIN = 28
COLUMNS = 20
BACKGROUND, TEXT, DOUBTFUL = (255, 255, 255), (0, 0, 0), (200, 60, 0)


def picture_grid(images: Images, labels: Images, hard_labels: npt.NDArray[np.int64]) -> Image.Image:
    """Draw a row a class with up to `COLUMNS` of its images.

    `images` `(N, C, H, W)` in [0, 1], one or three channels in colour, others as their mean;
    `labels` `(N, classes)`. Under each image stands the class that its soft label favours, with
    its probability; orange where that is not the row's own.
    """
    factor = max(1, -(-TILE_SIDE // images.shape[3]))
    side = factor * images.shape[3]
    step = side + GAP
    rows = [np.flatnonzero(hard_labels == label)[:COLUMNS] for label in np.unique(hard_labels)]
    width = MARGIN + step * max(len(row) for row in rows) + GAP
    row_height = step + 12
    canvas = Image.new("RGB", (width, row_height * len(rows) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for y, row in enumerate(rows):
        top = y * row_height + GAP
        own = int(hard_labels[row[0]])
        draw.text((GAP, top + side // 2 - 6), str(own), fill=TEXT)
        for x, index in enumerate(row):
            left = MARGIN + x * step
            tile = _tile(images[index]).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, top))
            favoured = int(labels[index].argmax())
            text = f"{favoured}: {labels[index, favoured]:.2f}"
            colour = TEXT if favoured == own else DOUBTFUL
            draw.text((left, top + side), text, fill=colour)
    return canvas


def save_picture_grid(
    path: Path, images: Images, labels: Images, hard_labels: npt.NDArray[np.int64]
) -> None:
    """Write the grid as PNG, replacing `path` whole or not at all."""
    buffer = io.BytesIO()
    picture_grid(images, labels, hard_labels).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, buffer.getvalue())


def _tile(image: Images) -> Image.Image:
    pixels = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels).convert("RGB")
    grey = np.rint(image.mean(axis=0) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
