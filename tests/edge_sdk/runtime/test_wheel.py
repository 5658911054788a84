import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(tmp_path):
    """The parts of the project that a wheel is made of, without anything that was built."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("edge_sdk", "models", "server_toolkit"):
        ignore = shutil.ignore_patterns("__pycache__", "lib")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


def build(source, *options):
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-w", str(source / "out")]
    return subprocess.run([*command, *options], cwd=source, capture_output=True, text=True)


@pytest.mark.slow
def test_a_wheel_carries_the_native_libraries_for_any_python(source):
    done = build(source, "--no-build-isolation")
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "out").glob("*.whl")
    assert "-py3-none-linux_" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for library in ("trajsyn_runtime", "executorch", "executorch_backend_xnnpack"):
        assert f"edge_sdk/runtime/lib/lib{library}.so" in names
    assert "edge_sdk/runtime/lib/LICENSE.executorch" in names


@pytest.mark.slow
def test_a_wheel_without_executorch_stops_with_what_to_do(source):
    done = build(source)  # the isolated build environment has setuptools alone
    assert done.returncode != 0
    assert "pip install --no-deps executorch==1.5.1" in done.stdout + done.stderr
