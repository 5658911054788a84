"""Compile the native library against the installed ExecuTorch wheel.

`python -m edge_sdk.runtime.build` fills `edge_sdk/runtime/lib/`, which runs without torch and
without executorch. Standard library only: `setup.py` loads this file on its own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from edge_sdk.errors import RuntimeLibraryError

SOURCE = Path(__file__).parent / "native" / "trajsyn_runtime.cpp"
LIB = Path(__file__).parent / "lib"
LIBRARY = LIB / "libtrajsyn_runtime.so"
STAMP = LIB / "build.json"
# No operator library: a program is one XNNPACK delegate, so no kernel is ever called.
SHARED = ("libexecutorch.so", "libexecutorch_threadpool.so", "libexecutorch_backend_xnnpack.so")
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-DC10_USING_CUSTOM_GENERATED_MACROS"),
    # The XNNPACK library registers itself when it is loaded; nothing refers to it by name.
    *("-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"),
)


def build(*, force: bool = False) -> bool:
    """Bring `lib/` up to date; return whether anything had to be done.

    Raises `RuntimeLibraryError` without an ExecuTorch wheel or a compiler, or when it fails.
    """
    wheel, version = _find_executorch()
    stamp = _stamp(version)
    if not force and _is_current(stamp):
        return False
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeLibraryError("no C++ compiler found; install g++ or set CXX")
    LIB.mkdir(exist_ok=True)
    STAMP.unlink(missing_ok=True)
    for name in SHARED:
        _replace(LIB / name, wheel / "lib" / name)
    licence = _licence_text()
    if licence is not None:
        (LIB / "LICENSE.executorch").write_text(licence, encoding="utf-8")
    _compile(compiler, wheel / "include")
    STAMP.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    return True


def _find_executorch() -> tuple[Path, str]:
    """Return the wheel's folder and version, without importing it (that would load torch)."""
    spec = importlib.util.find_spec("executorch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "lib" / SHARED[0]).exists():
            return Path(place), importlib.metadata.version("executorch")
    raise RuntimeLibraryError(
        "the native library is built against the executorch 1.5.1 wheel, which this Python "
        f"({sys.executable}) does not have; run `pip install --no-deps executorch==1.5.1` and, "
        "for `pip wheel` or `pip install .`, add --no-build-isolation"
    )


def _stamp(version: str) -> dict[str, str]:
    source = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()
    return {"source": source, "executorch": version, "machine": platform.machine()}


def _is_current(stamp: dict[str, str]) -> bool:
    try:
        built = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return built == stamp and LIBRARY.exists() and all((LIB / n).exists() for n in SHARED)


def _replace(target: Path, source: Path) -> None:
    """Copy through a rename, so that a process that has the old library mapped keeps it."""
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.chmod(0o755)
    partial.replace(target)


def _licence_text() -> str | None:
    for file in importlib.metadata.files("executorch") or ():
        if file.name == "LICENSE" and ".dist-info" in str(file):
            return file.read_text(encoding="utf-8")
    return None


def _compile(compiler: str, include: Path) -> None:
    partial = LIBRARY.with_suffix(".partial")
    libraries = [f"-l{name.removeprefix('lib').removesuffix('.so')}" for name in SHARED]
    headers = (include, include / "executorch/runtime/core/portable_type/c10")
    command = [compiler, *FLAGS, *(f"-I{h}" for h in headers), str(SOURCE), "-o", str(partial)]
    command += [f"-L{LIB}", *libraries]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeLibraryError(
            f"{compiler} could not compile {SOURCE.name}:\n{result.stderr.strip()[-4000:]}"
        )
    partial.replace(LIBRARY)


def main() -> int:
    """Build and say so; return the exit code."""
    try:
        done = build(force="--force" in sys.argv[1:])
    except RuntimeLibraryError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{LIB}: {'built' if done else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
