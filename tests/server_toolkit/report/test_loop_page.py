"""The page: everything is in it, nothing is fetched, hostile names stay text."""

import base64
import io
import re

import numpy as np
from PIL import Image

from server_toolkit.report.figures import image_grid
from server_toolkit.report.loop_page import (
    Arm,
    DeviceRow,
    ImageSet,
    LoopReport,
    render_loop_page,
)


def report(**changes):
    curve = {0.0: (0.9, 0.85, 0.95), 0.1: (0.4, 0.3, 0.5)}
    arm = dict(
        meaning="what it is", is_control=False, clean=curve[0.0], robust=curve[0.1], curve=curve
    )
    fields = dict(
        title="The loop",
        summary=[("devices", "1")],
        epsilon=0.1,
        arms=[Arm(name="fedavg", **arm), Arm(name="robust", **arm)],
        image_sets=[
            ImageSet(
                title="proxy",
                meaning="made",
                images=np.ones((4, 1, 8, 8), np.float32),
                labels=np.array([0, 0, 1, 1]),
            )
        ],
        accuracy_by_round=[0.1, 0.8],
        devices=[DeviceRow(device="cam-01", images=300, bytes_up=1234, bytes_down=5, training_s=1,
                           training_cpu_s=1, running="version 1", local_accuracy=0.5,
                           inference_ms=None)],
        notes=["a note"],
    )  # fmt: skip
    return LoopReport(**(fields | changes))


def test_the_page_needs_nothing_from_outside():
    page = render_loop_page(report(), main_arm="robust")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert "@import" not in page


def test_every_arm_device_and_note_is_on_the_page():
    page = render_loop_page(report(), main_arm="robust")
    for text in ("fedavg", "robust", "90.0 %", "85.0 to 95.0", "cam-01", "1,234", "a note",
                 "not measured", "ε = 0.1"):  # fmt: skip
        assert text in page


def test_names_from_devices_are_text_not_markup():
    page = render_loop_page(report(title="<script>alert(1)</script>"), main_arm="robust")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_same_run_gives_the_same_page():
    assert render_loop_page(report(), main_arm="x") == render_loop_page(report(), main_arm="x")


def test_image_grid_has_a_row_a_class_with_exact_pixels():
    images = np.zeros((3, 1, 2, 2), np.float32)
    images[2] = 1.0
    images[0, 0, 0, 1] = 0.5
    url = image_grid(images, np.array([1, 1, 4]), columns=2, scale=1)
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    pixels = np.asarray(picture)
    assert pixels.shape == (6, 6)
    assert pixels[0, 1] == 128
    assert (pixels[0:2, 3:5] == 0).all()
    assert (pixels[3:5, 0:2] == 255).all()
