import platform

import pytest

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.runtime import build


@pytest.fixture
def native(tmp_path, monkeypatch):
    """A folder of sources in place of the real one, and an unpacked wheel's version file."""
    folder = tmp_path / "native"
    folder.mkdir()
    for name in ("a.cpp", "a.h", "k_avx2.cpp", "k_avx512.cpp", "k_avx512vnni.cpp"):
        (folder / name).write_text(name)
    (folder / "k_neon_dotprod.cpp").write_text("dot")
    (tmp_path / "version.py").write_text("1.5.1")
    monkeypatch.setattr(build, "NATIVE", folder)
    return folder


def stamp(native, machine="x86_64"):
    sources = build._sources(machine)
    return build._stamp(build.Target(machine, native.parent, native.parent), sources)


def test_a_file_for_one_architecture_is_compiled_there_alone(native):
    x86 = {path.name: flags for path, flags in build._sources("x86_64").items()}
    arm = {path.name: flags for path, flags in build._sources("aarch64").items()}
    assert set(x86) == {"a.cpp", "k_avx2.cpp", "k_avx512.cpp", "k_avx512vnni.cpp"}
    assert set(arm) == {"a.cpp", "k_neon_dotprod.cpp"}
    assert x86["a.cpp"] == arm["a.cpp"]
    assert not any(flag.startswith("-m") for flag in arm["a.cpp"])
    assert "-mavx512f" not in x86["k_avx2.cpp"]
    assert "-mavx512vnni" not in x86["k_avx512.cpp"]
    assert "-mavx512vnni" in x86["k_avx512vnni.cpp"]


@pytest.mark.parametrize("name", ["a.cpp", "a.h", "k_avx2.cpp"])
def test_a_changed_source_or_header_is_built_anew(native, name):
    before = stamp(native)
    assert stamp(native) == before
    (native / name).write_text("changed")
    assert stamp(native) != before


def test_another_machine_or_executorch_is_built_anew(native):
    before = stamp(native)
    assert stamp(native, "aarch64") != before
    (native.parent / "version.py").write_text("1.5.2")
    assert stamp(native) != before


def test_the_glibc_needed_is_the_newest_that_any_library_asks_for(tmp_path):
    (tmp_path / "a.so").write_bytes(b"\0GLIBC_2.9\0GLIBC_2.2.5\0GLIBCXX_3.4.30\0")
    (tmp_path / "b.so").write_bytes(b"\0GLIBC_2.27\0exp@GLIBC_2.29\0")
    assert build.glibc_needed(tmp_path) == (2, 27)


def test_this_machine_s_library_loads_on_debian_10_or_ubuntu_18_04_too(runtime):
    assert build.glibc_needed(build.LIB) <= (2, 27)


def test_a_missing_cross_compiler_is_named_with_its_package(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    package = f"g\\+\\+-{other.replace('_', '-')}-linux-gnu"
    with pytest.raises(RuntimeLibraryError, match=package):
        build.find_compiler(other)


def test_another_machine_s_library_never_takes_the_place_of_this_one_s(capsys):
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    with pytest.raises(SystemExit):
        build.main(["--machine", other])
    assert "--executorch" in capsys.readouterr().err


def test_a_compiler_for_another_machine_is_not_taken(monkeypatch, tmp_path):
    compiler = tmp_path / "other"
    compiler.write_text("#!/bin/sh\necho riscv64-linux-gnu\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.find_compiler("riscv64") == str(compiler)
    assert build.find_compiler(platform.machine()) != str(compiler)
