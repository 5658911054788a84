import json
import platform
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from edge_sdk.runtime import build as native
from tools.wheels import build_wheel, copy_parts

SCRIPT = Path(__file__).parent / "run_program.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(platform.machine(), folder / "dist", cache=folder / "cache")


def test_it_carries_the_native_libraries_for_any_python_and_old_systems(wheel):
    assert wheel.name.endswith(f"-py3-none-manylinux_2_27_{platform.machine()}.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if "/runtime/lib/" in n}
    expected = {native.LIBRARY, *native.SHARED, native.STAMP}
    assert names == {f"edge_sdk/runtime/lib/{name}" for name in expected}


def test_it_carries_the_licences_of_all_that_is_in_the_libraries(wheel):
    archive = zipfile.ZipFile(wheel)
    texts = {Path(n).name: archive.read(n) for n in archive.namelist() if "/licenses/" in n}
    index = texts.pop("README.md").decode()
    for name in texts:
        assert name in index
    for name in ("ExecuTorch", "XNNPACK", "KleidiAI", "pthreadpool", "cpuinfo", "FlatBuffers"):
        assert name in index
    installed = native.installed_executorch().parent / "executorch-1.5.1.dist-info"
    assert texts["ExecuTorch.txt"] == (installed / "licenses" / "LICENSE").read_bytes()


def test_it_carries_neither_tests_nor_sources_of_the_library(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.endswith((".cpp", ".h", ".o", ".partial")) or "test" in n]


def test_it_trains_where_its_base_dependencies_alone_are_installed(
    wheel, small_training_program, tmp_path
):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, cwd=tmp_path)
    small_training_program.save(tmp_path / "step.program")
    command = (SCRIPT, tmp_path / "step.program", "3")
    there, here = (
        json.loads(subprocess.run([p, *command], capture_output=True, check=True, cwd=f).stdout)
        for p, f in ((python, tmp_path), (sys.executable, Path(__file__).parents[3]))
    )
    assert Path(there["package"]).is_relative_to(tmp_path)
    assert there["values"] == pytest.approx(here["values"], rel=1e-5)
    absent = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('executorch'))"
    found = subprocess.run([python, "-c", absent], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["None", "None"]


def test_without_executorch_the_build_stops_with_what_to_do(tmp_path):
    copy_parts(tmp_path / "source")
    # The isolated build environment has setuptools alone.
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-w", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install --no-deps executorch==1.5.1" in done.stdout + done.stderr
