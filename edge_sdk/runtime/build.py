"""Compile the native library against an ExecuTorch wheel.

`python -m edge_sdk.runtime.build` fills `edge_sdk/runtime/lib/`, which runs without torch and
without executorch. Standard library only: `setup.py` loads this file on its own.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.errors import RuntimeLibraryError

NATIVE = Path(__file__).parent / "native"
LIB = Path(__file__).parent / "lib"
LIBRARY = "libtrajsyn_runtime.so"
STAMP = "build.json"
EXECUTORCH = "1.5.1"
# No operator library of ExecuTorch's: the kernels that a program calls are XNNPACK's or our own.
SHARED = ("libexecutorch.so", "libexecutorch_threadpool.so", "libexecutorch_backend_xnnpack.so")

COMPILE = (
    *("-std=c++17", "-O3", "-fPIC", "-fno-semantic-interposition"),
    *("-DC10_USING_CUSTOM_GENERATED_MACROS", "-include", "old_glibc.h"),
    # `-std=c++17` would keep multiplications and additions apart where the processor has both, and
    # nobody here reads floating-point exceptions, which would keep branches in loops.
    *("-ffp-contract=fast", "-fno-trapping-math", "-fno-math-errno"),
)
# The XNNPACK library registers itself when it is loaded; nothing refers to it by name.
LINK = ("-shared", "-Wl,--no-as-needed", "-Wl,--no-undefined", "-Wl,-rpath,$ORIGIN")
AVX2 = ("-mavx2", "-mfma")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2)
# Files for one architecture, by the end of their names: (machine, instructions that a processor
# may lack; what is in such a file is called only after asking the processor).
SPECIAL = {
    "_avx2": ("x86_64", AVX2),
    "_avx512": ("x86_64", AVX512),
    "_avx512vnni": ("x86_64", ("-mavx512vnni", *AVX512)),
    "_neon_dotprod": ("aarch64", ("-march=armv8.2-a+dotprod",)),
}

Sources = dict[Path, tuple[str, ...]]  # each file with its flags


@dataclass(frozen=True)
class Target:
    """What to build for, against which unpacked ExecuTorch wheel, and into which folder."""

    machine: str  # x86_64 or aarch64
    executorch: Path  # the folder that holds `include/` and `lib/`
    output: Path


def build(target: Target | None = None, *, force: bool = False) -> bool:
    """Bring a folder up to date (default: `lib/`, for this machine); return whether it was not.

    Raises `RuntimeLibraryError` without an ExecuTorch wheel or a compiler, or when it fails.
    """
    target = target or Target(platform.machine(), installed_executorch(), LIB)
    sources = _sources(target.machine)
    stamp = _stamp(target, sources)
    if not force and _is_current(target.output, stamp):
        return False
    compiler = find_compiler(target.machine)
    target.output.mkdir(parents=True, exist_ok=True)
    (target.output / STAMP).unlink(missing_ok=True)
    for name in SHARED:
        _replace(target.output / name, target.executorch / "lib" / name)
    with tempfile.TemporaryDirectory() as scratch:
        _compile_and_link(compiler, target, sources, Path(scratch))
    (target.output / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    return True


def installed_executorch() -> Path:
    """Return the folder of this Python's wheel, without importing it (that would load torch)."""
    spec = importlib.util.find_spec("executorch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "lib" / SHARED[0]).exists():
            return Path(place)
    raise RuntimeLibraryError(
        f"the native library is built against the executorch {EXECUTORCH} wheel, which this Python "
        f"({sys.executable}) does not have; run `pip install --no-deps executorch=={EXECUTORCH}` "
        "and, for `pip wheel` or `pip install .`, add --no-build-isolation"
    )


def glibc_needed(folder: Path) -> tuple[int, int]:
    """Return the oldest glibc (major, minor) on which every library in `folder` loads.

    ELF names the versions in its string table; names of their own stand between zero bytes.
    """
    versions = re.compile(rb"(?<=\0)GLIBC_(\d+)\.(\d+)(?=[.\0])")
    needed = {(2, 0)}
    for library in folder.glob("*.so"):
        for major, minor in versions.findall(library.read_bytes()):
            needed.add((int(major), int(minor)))
    return max(needed)


def _sources(machine: str) -> Sources:
    """Return the files to compile for `machine`, each with its flags."""
    sources: Sources = {}
    for path in sorted(NATIVE.glob("*.cpp")):
        found = [rule for end, rule in SPECIAL.items() if path.stem.endswith(end)]
        if not found:
            sources[path] = COMPILE
        elif found[0][0] == machine:
            sources[path] = COMPILE + found[0][1]
    return sources


def _stamp(target: Target, sources: Sources) -> dict[str, str]:
    digest = hashlib.sha256()
    for path in sorted([*sources, *NATIVE.glob("*.h"), *NATIVE.glob("*.inc")]):
        flags = " ".join(sources.get(path, ()))
        digest.update(f"{path.name}\0{flags}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    digest.update(" ".join(LINK).encode())
    version = (target.executorch / "version.py").read_text(encoding="utf-8")
    wheel = hashlib.sha256(version.encode()).hexdigest()
    return {"source": digest.hexdigest(), "executorch": wheel, "machine": target.machine}


def _is_current(output: Path, stamp: dict[str, str]) -> bool:
    try:
        built = json.loads((output / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return built == stamp and all((output / name).exists() for name in (LIBRARY, *SHARED))


def find_compiler(machine: str) -> str:
    """Return a C++ compiler for `machine`: `$CXX` if it is one, else by its usual name.

    Raises `RuntimeLibraryError` saying what to install.
    """
    native = machine == platform.machine()
    usual = ["c++", "g++"] if native else [f"{machine}-linux-gnu-g++"]
    for name in [os.environ.get("CXX", ""), *usual]:
        compiler = shutil.which(name)
        if compiler and _run(compiler, "-dumpmachine").startswith(machine):
            return compiler
    package = "g++" if native else f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise RuntimeLibraryError(
        f"no C++ compiler for {machine} found; install {package} (Debian, Ubuntu) or set CXX"
    )


def _replace(target: Path, source: Path) -> None:
    """Copy through a rename, so that a process that has the old library mapped keeps it."""
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.chmod(0o755)
    partial.replace(target)


def _compile_and_link(compiler: str, target: Target, sources: Sources, scratch: Path) -> None:
    include = target.executorch / "include"
    c10 = include / "executorch/runtime/core/portable_type/c10"
    headers = (f"-I{NATIVE}", f"-I{include}", f"-I{c10}")
    objects = {path: scratch / f"{path.stem}.o" for path in sources}

    def compile_one(path: Path) -> None:
        _run(compiler, *sources[path], *headers, "-c", str(path), "-o", str(objects[path]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    libraries = [f"-l{name.removeprefix('lib').removesuffix('.so')}" for name in SHARED]
    partial = (target.output / LIBRARY).with_suffix(".partial")
    places = [f"-L{target.output}", *libraries]
    _run(compiler, *LINK, *map(str, objects.values()), *places, "-o", str(partial))
    partial.replace(target.output / LIBRARY)


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        name = next((Path(word).name for word in command if word.endswith(".cpp")), LIBRARY)
        raise RuntimeLibraryError(
            f"{command[0]} could not build {name}:\n{result.stderr.strip()[-4000:]}"
        )
    output: str = result.stdout
    return output


def main(arguments: list[str] | None = None) -> int:
    """Build and say so; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edge_sdk.runtime.build", description=__doc__)
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    parser.add_argument("--machine", choices=("x86_64", "aarch64"), default=platform.machine())
    parser.add_argument(
        "--executorch",
        type=Path,
        help="unpacked wheel of that machine (default: the installed one)",
    )
    parser.add_argument("--output", type=Path, default=LIB, help="default: %(default)s")
    options = parser.parse_args(arguments)
    foreign = options.machine != platform.machine()
    if foreign and (options.executorch is None or options.output == LIB):
        parser.error(f"--machine {options.machine} needs its --executorch and an --output")
    try:
        executorch = options.executorch or installed_executorch()
        target = Target(options.machine, executorch, options.output)
        done = build(target, force=options.force)
    except RuntimeLibraryError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{options.output}: {'built' if done else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
