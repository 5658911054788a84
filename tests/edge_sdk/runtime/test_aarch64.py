"""The aarch64 wheel under user-mode emulation: correctness only, the speed means nothing.

Debian 12's Python comes from a folder of unpacked arm64 packages, numpy and the rest from their
aarch64 wheels; both are kept in build/. Run with `make test-aarch64`.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.export import inference_program, training_program
from models import layout_of
from tests.edge_sdk.conftest import convnet
from tests.edge_sdk.runtime.run_program import labelled_images, start_weights
from tools.wheels import build_wheel, executorch_for

ROOT = Path(__file__).parents[3]
CACHE = ROOT / "build"
SCRIPT = Path(__file__).parent / "run_program.py"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
COMPILER = os.environ.get("CXX") or shutil.which("aarch64-linux-gnu-g++")
# Raspberry Pi 3 and Zero 2 W, 4, and 5: only the last has dot-product instructions.
PROCESSORS = ("cortex-a53", "cortex-a72", "cortex-a76")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64, so needs one"),
    pytest.mark.skipif(QEMU is None, reason="needs qemu-aarch64: apt install qemu-user-static"),
    pytest.mark.skipif(
        COMPILER is None, reason="needs a cross compiler: apt install g++-aarch64-linux-gnu"
    ),
    pytest.mark.skipif(
        shutil.which("mmdebstrap") is None, reason="needs mmdebstrap: apt install mmdebstrap"
    ),
]


def fetched(folder, *command):
    """`folder`, which `command` fills in place of {}; skips where that cannot be fetched."""
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(exist_ok=True)
        filled = [str(partial) if word == "{}" else word for word in command]
        done = subprocess.run(filled, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{command[0]} did not fill {folder.name}: {done.stderr[-500:]}")
        partial.rename(folder)
    return folder


@pytest.fixture(scope="module")
def debian():
    """Debian 12's arm64 Python and pip, unpacked and not installed: nothing of it runs here."""
    return fetched(
        CACHE / "debian12-arm64",
        *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"),
        *("--include=python3,python3-pip,libstdc++6", "bookworm", "{}"),
        "http://deb.debian.org/debian",
    )


@pytest.fixture(scope="module")
def packages():
    """What the wheel depends on but onnxruntime, whose import crashes under emulation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [d for d in project["dependencies"] if not d.startswith("onnxruntime")]
    platforms = [f"--platform=manylinux_2_{n}_aarch64" for n in (34, 31, 28, 27, 17)]
    platforms.append("--platform=manylinux2014_aarch64")
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return fetched(
        CACHE / f"packages-aarch64-{digest}",
        *(sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"),
        *("--python-version=3.11", *platforms, "--target", "{}", *names),
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    try:
        executorch_for("aarch64", CACHE)
    except RuntimeLibraryError as error:
        pytest.skip(str(error))
    return build_wheel("aarch64", tmp_path_factory.mktemp("dist"), cache=CACHE)


@pytest.fixture(scope="module")
def emulated(debian, packages, wheel, tmp_path_factory):
    """A function that runs the emulated Python, with the wheel installed by Debian 12's pip."""
    site = tmp_path_factory.mktemp("site")

    def run(processor, *arguments):
        command = [QEMU, "-cpu", processor, "-L", debian, debian / "usr/bin/python3.11"]
        places = {"PYTHONPATH": f"{site}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=places, cwd=site
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    options = ("--no-deps", "--no-index", "--target", str(site), str(wheel))
    run(PROCESSORS[0], "-m", "pip", "install", *options)
    return run


def here_and_there(file, emulated, processor, folder, *arguments):
    """What `run_program.py` says on this machine and on the emulated processor."""
    path = folder / "a.program"
    file.save(path)
    command = (str(SCRIPT), str(path), *arguments)
    here = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    there = json.loads(emulated(processor, *command))
    assert there["machine"] == "aarch64"
    assert str(ROOT) not in there["package"]
    assert {"torch", "executorch", "server_toolkit"}.isdisjoint(there["loaded"])
    assert there["instruction_sets"] == ["neon"]
    dot_product = ["neon_dotprod"] if processor == "cortex-a76" else []
    assert there["int8_instruction_sets"] == [*dot_product, "portable"]
    return json.loads(here.stdout), there


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(
    ("channels", "size", "width", "quantized", "steps"),
    [(1, 16, 8, False, 12), (1, 16, 8, True, 12), (3, 32, 32, False, 4)],
)
def test_the_losses_are_those_of_x86(
    runtime, emulated, tmp_path, processor, channels, size, width, quantized, steps
):
    spec = convnet(channels=channels, image_size=size, width=width)
    file = training_program(spec, quantized=quantized)
    here, there = here_and_there(file, emulated, processor, tmp_path, str(steps))
    assert len(there["values"]) == steps
    assert there["values"][-1] < 0.9 * there["values"][0]
    assert there["values"] == pytest.approx(here["values"], rel=1e-5)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_int8_arithmetic_is_that_of_x86(runtime, emulated, tmp_path, processor):
    """Which way a gradient is rounded hangs on its last bits, so the losses drift apart slowly."""
    file = training_program(convnet(width=16), int8_arithmetic=True)
    here, there = here_and_there(file, emulated, processor, tmp_path, "8")
    assert there["values"][-1] < 0.9 * there["values"][0]
    assert there["values"] == pytest.approx(here["values"], rel=0.01)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_logits_are_those_of_x86(runtime, emulated, tmp_path, processor, precision):
    spec = convnet()
    file = inference_program(
        spec,
        start_weights(layout_of(spec)),
        precision=precision,
        calibration=labelled_images(spec)[0],
    )
    here, there = here_and_there(file, emulated, processor, tmp_path)
    assert np.ptp(here["values"]) > 1
    # int8: the rounding of a sum may differ by one step of its scale.
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert there["values"] == pytest.approx(here["values"], abs=tolerance)
