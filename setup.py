"""Native part of the build: a wheel carries the compiled runtime; metadata is in pyproject.toml.

`TRAJSYN_MACHINE` and `TRAJSYN_EXECUTORCH` choose another machine than this one and the unpacked
ExecuTorch wheel for it; `make wheels` sets them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MACHINE = os.environ.get("TRAJSYN_MACHINE", platform.machine())


def native_build() -> ModuleType:
    """Load `edge_sdk/runtime/build.py` alone: its package needs numpy."""
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location(
        "trajsyn_native_build", ROOT / "edge_sdk" / "runtime" / "build.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildWithRuntime(build_py):
    """Compile the runtime into the build folder, beside the package.

    An editable install does without; there, `python -m edge_sdk.runtime.build` is run by itself.
    """

    def run(self) -> None:
        """Build; stops with a message where ExecuTorch or a compiler is missing."""
        super().run()
        if self.editable_mode:
            return
        arguments = ["--machine", MACHINE, "--output", str(library_folder(self))]
        if "TRAJSYN_EXECUTORCH" in os.environ:
            arguments += ["--executorch", os.environ["TRAJSYN_EXECUTORCH"]]
        if native_build().main(arguments) != 0:
            raise SystemExit("the native runtime was not built; see the error above")


def library_folder(command: build_py) -> Path:
    """Return where in the build folder the native library lies."""
    return Path(command.build_lib) / "edge_sdk" / "runtime" / "lib"


class NativeDistribution(Distribution):
    """A distribution that belongs to one platform."""

    def has_ext_modules(self) -> bool:
        """Install where platform-dependent packages go."""
        return True


class PlatformWheel(bdist_wheel):
    """Tag the wheel for any Python 3 of its platform: ctypes needs no particular version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return `py3-none-manylinux_<glibc>_<machine>` with the glibc that the libraries need."""
        folder = library_folder(self.get_finalized_command("build_py"))
        major, minor = native_build().glibc_needed(folder)
        return "py3", "none", f"manylinux_{major}_{minor}_{MACHINE}"


setup(
    distclass=NativeDistribution,
    cmdclass={"build_py": BuildWithRuntime, "bdist_wheel": PlatformWheel},
)
