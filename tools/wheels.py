"""Build the wheels of both architectures and say how large they are.

`make wheels` runs this in the project's environment. A foreign architecture needs its cross
compiler and its ExecuTorch wheel, which pip fetches once.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.runtime import build as native

ROOT = Path(__file__).resolve().parents[1]
MACHINES = ("x86_64", "aarch64")
PARTS = (
    "pyproject.toml",
    "setup.py",
    "README.md",
    "licenses",
    "edge_sdk",
    "models",
    "server_toolkit",
)
BIGGEST = 6


def build_wheel(machine: str, output: Path, *, cache: Path) -> Path:
    """Build one wheel into `output`, in place of an older one; return its path.

    Raises `RuntimeLibraryError` without the compiler or the ExecuTorch wheel, or when it fails.
    """
    native.find_compiler(machine)
    executorch = executorch_for(machine, cache)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        copy_parts(source)
        command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--quiet"]
        command += ["--no-build-isolation", "--wheel-dir", str(Path(scratch) / "out")]
        environment = dict(TRAJSYN_MACHINE=machine, TRAJSYN_EXECUTORCH=str(executorch))
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeLibraryError(f"no wheel for {machine}:\n{done.stdout}{done.stderr}")
        (built,) = (Path(scratch) / "out").glob("*.whl")
        for old in output.glob(f"trajsyn-*_{machine}.whl"):
            old.unlink()
        return Path(shutil.copy(built, output))


def copy_parts(folder: Path) -> None:
    """Copy what a wheel is made of, without anything that was built before."""
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "lib")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)


def executorch_for(machine: str, cache: Path) -> Path:
    """Return the folder of ExecuTorch's wheel for `machine`: the installed one, or fetched once."""
    if machine == platform.machine():
        return native.installed_executorch()
    place = cache / f"executorch-{native.EXECUTORCH}-{machine}"
    if place.exists():
        return place / "executorch"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--platform", f"manylinux_2_28_{machine}"]
        command += ["--python-version", "3.11", "--dest", scratch]
        command += [f"executorch=={native.EXECUTORCH}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeLibraryError(
                f"pip could not fetch executorch {native.EXECUTORCH} for {machine}; is this "
                f"machine online?\n{done.stderr.strip()}"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        partial = place.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            wanted = ("executorch/include/", "executorch/lib/", "executorch/version.py")
            archive.extractall(partial, [n for n in archive.namelist() if n.startswith(wanted)])
    partial.rename(place)
    return place / "executorch"


def describe(wheel: Path) -> str:
    """Return a text with the wheel's bytes, installed bytes and largest files."""
    with zipfile.ZipFile(wheel) as archive:
        files = [i for i in archive.infolist() if not i.is_dir()]
    installed = sum(i.file_size for i in files)
    lines = [
        f"{wheel}",
        f"  wheel {wheel.stat().st_size:,} bytes; installed {installed:,} in {len(files)} files",
    ]
    largest = sorted(files, key=lambda i: -i.file_size)[:BIGGEST]
    lines += [f"  {i.file_size:>10,} {i.filename}" for i in largest]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Build; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--machine", choices=MACHINES, action="append", help="default: both")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist/")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build", help="for fetched ExecuTorch; default: build/"
    )
    options = parser.parse_args()
    try:
        for machine in options.machine or MACHINES:
            wheel = build_wheel(machine, options.output, cache=options.cache)
            sys.stdout.write(describe(wheel))
    except RuntimeLibraryError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
