"""The log has one line an iteration, whatever was killed and resumed."""

import json

import numpy as np
import pytest

from server_toolkit.distill.engine import DistillProgress, SegmentMatch
from server_toolkit.distill.picture_grid import TILE_SIDE, picture_grid
from server_toolkit.distill.run_log import RunLog, image_statistics


def progress(iteration, loss=0.5):
    images = np.full((2, 1, 8, 8), 0.25, np.float32)
    labels = np.full((2, 2), 0.5, np.float32)
    return DistillProgress(
        iteration=iteration,
        iterations=9,
        match_loss=loss,
        step_size=0.1,
        segments=(SegmentMatch("fleet 0 to 1", loss, skipped=False),),
        gradient_norms={"images": 1.0},
        rate_scale=1.0,
        event=None,
        seconds=0.01,
        snapshot=lambda: (images, labels, np.array([0, 1])),
    )


def write(path, iterations):
    with RunLog(path) as log:
        for iteration in iterations:
            log.write(progress(iteration))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_replaces_the_lines_that_it_repeats(tmp_path):
    path = tmp_path / "proxy" / "a.log.jsonl"
    write(path, [1, 2, 3])
    with path.open("a") as file:
        file.write('{"iteration": 4, "mat')  # killed while it wrote
    write(path, [3, 4])
    assert [line["iteration"] for line in read(path)] == [1, 2, 3, 4]
    write(path, [1])
    assert [line["iteration"] for line in read(path)] == [1]


def test_a_line_says_what_happened(tmp_path):
    path = tmp_path / "a.log.jsonl"
    with RunLog(path) as log:
        log.write(progress(1, loss=float("nan")))
    (line,) = read(path)
    assert line["match_loss"] is None
    assert line["segments"][0]["segment"] == "fleet 0 to 1"
    assert line["images"]["mean"] == pytest.approx(0.25)


def test_image_statistics_of_a_chessboard():
    board = np.indices((4, 4)).sum(axis=0) % 2
    found = image_statistics(board[None, None].astype(np.float32))
    assert found == {"mean": 0.5, "std": 0.5, "saturated": 1.0, "roughness": 1.0}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_shows_every_image_in_the_row_of_its_class(channels):
    images = np.zeros((3, channels, 24, 24), np.float32)
    for index, grey in enumerate((0.2, 0.6, 1.0)):
        images[index] = grey
    labels = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    grid = np.asarray(picture_grid(images, labels, np.array([0, 0, 1])))
    tiles = {grey: np.argwhere((grid == round(grey * 255)).all(axis=2)) for grey in (0.2, 0.6)}
    for places in tiles.values():
        assert len(places) == TILE_SIDE**2
    top = {grey: places.min(axis=0) for grey, places in tiles.items()}
    assert top[0.2][0] == top[0.6][0]
    assert top[0.2][1] < top[0.6][1]
