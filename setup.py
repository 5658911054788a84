"""Native part of the build: a wheel carries the compiled runtime; metadata is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRuntime(build_py):
    """Compile the runtime before the package data are collected.

    An editable install does without; there, `python -m edge_sdk.runtime.build` is run by itself.
    """

    def run(self) -> None:
        """Build; stops with a message where ExecuTorch or a compiler is missing."""
        if not self.editable_mode:
            sys.path.insert(0, str(ROOT))
            path = ROOT / "edge_sdk" / "runtime" / "build.py"
            spec = importlib.util.spec_from_file_location("trajsyn_runtime_build", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            if module.main() != 0:
                raise SystemExit("the native runtime was not built; see the error above")
        super().run()


class NativeDistribution(Distribution):
    """A distribution that belongs to one platform."""

    def has_ext_modules(self) -> bool:
        """Install where platform-dependent packages go."""
        return True


class PlatformWheel(bdist_wheel):
    """Tag the wheel for any Python 3 of this platform: ctypes needs no particular version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return `py3-none-<platform>`."""
        return "py3", "none", super().get_tag()[2]


setup(
    distclass=NativeDistribution,
    cmdclass={"build_py": BuildWithRuntime, "bdist_wheel": PlatformWheel},
)
