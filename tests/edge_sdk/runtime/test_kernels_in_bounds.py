import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_sdk.runtime import build, instruction_sets, int8_instruction_sets

HARNESS = Path(__file__).parent / "kernels_in_bounds.cpp"
SANITIZE = ("-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.slow
def test_no_kernel_leaves_its_buffers(runtime, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    flags = {p: f for p, f in build._sources(platform.machine()).items() if "kernels" in p.name}

    def compiled(source):
        target = tmp_path / f"{source.stem}.o"
        special = [f for f in flags.get(source, ()) if f.startswith("-m")]
        command = [compiler, *SANITIZE, *special, f"-I{build.NATIVE}", "-c", source, "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*flags, HARNESS]))
    program = tmp_path / "kernels_in_bounds"
    subprocess.run([compiler, *SANITIZE, *objects, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout.split() == [*instruction_sets(), *int8_instruction_sets()]
