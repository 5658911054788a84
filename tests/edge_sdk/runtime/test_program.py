import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.runtime import Program, ProgramFile, aligned_zeros, library, set_threads, thread_count
from edge_sdk.runtime import build as native_build


@pytest.fixture
def program(small_training_program):
    loaded = Program.load(small_training_program.pte)
    yield loaded
    loaded.close()


def arrays(program, *, seed=0):
    rng = np.random.default_rng(seed)
    inputs = [i.empty() for i in program.inputs]
    for array in inputs:
        array[...] = rng.normal(size=array.shape)
    return inputs, [o.empty() for o in program.outputs]


def test_inputs_and_outputs_are_described(program):
    assert program.inputs[0].shape == (4, 16, 16, 1)
    assert program.inputs[1].shape == (4, 10)
    assert program.outputs[0].shape == (1,)
    assert [i.shape for i in program.inputs[2:]] == [o.shape for o in program.outputs[2:]]
    assert {i.dtype for i in program.inputs + program.outputs} == {np.dtype(np.float32)}


def test_outputs_are_overwritten_and_the_same_each_time(program):
    inputs, outputs = arrays(program)
    program.execute(inputs, outputs)
    again = [np.full_like(o, np.nan) for o in outputs]
    program.execute(inputs, again)
    assert all(np.array_equal(a, b) for a, b in zip(outputs, again, strict=True))


def test_programs_on_two_threads_do_not_mix_their_arrays(program):
    cases = [arrays(program, seed=s) for s in range(2)]
    truth = []
    for inputs, outputs in cases:
        program.execute(inputs, outputs)
        truth.append([o.copy() for o in outputs])

    def loop(case):
        for _ in range(50):
            program.execute(*case)

    threads = [threading.Thread(target=loop, args=(c,)) for c in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (_, outputs), expected in zip(cases, truth, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_an_array_that_does_not_fit_is_named(program):
    inputs, outputs = arrays(program)
    wrong = [*inputs]
    wrong[3] = inputs[3].astype(np.float64)
    with pytest.raises(ValueError, match=r"input 3: expected .* float32, got .* float64"):
        program.execute(wrong, outputs)
    wrong = [*outputs]
    wrong[2] = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="output 2: expected"):
        program.execute(inputs, wrong)
    wrong = [*inputs]
    wrong[0] = np.zeros((16, 4, 16, 1), np.float32).transpose(1, 0, 2, 3)
    with pytest.raises(ValueError, match="input 0 is not C-contiguous"):
        program.execute(wrong, outputs)
    with pytest.raises(ValueError, match="1 inputs given"):
        program.execute(inputs[:1], outputs)
    outputs[1].flags.writeable = False
    with pytest.raises(ValueError, match="output 1 is read-only"):
        program.execute(inputs, outputs)


def test_threads_can_be_changed_while_a_program_is_loaded(program):
    inputs, outputs = arrays(program)
    program.execute(inputs, outputs)
    expected = [o.copy() for o in outputs]
    try:
        set_threads(2)
        assert thread_count() == 2
        program.execute(inputs, outputs)
    finally:
        set_threads(1)
    assert thread_count() == 1
    for found, truth in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="choose 1 to 256"):
        set_threads(0)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 1000, 100_000])
def test_random_bytes_are_no_program(runtime, size):
    data = np.random.default_rng(size).bytes(size)
    with pytest.raises(RuntimeLibraryError):
        Program.load(data)


def test_a_truncated_program_is_refused(small_training_program):
    pte = small_training_program.pte
    for size in range(0, len(pte), len(pte) // 40):
        with pytest.raises(RuntimeLibraryError):
            Program.load(pte[:size])


def test_a_missing_file_is_named(tmp_path, runtime):
    with pytest.raises(RuntimeLibraryError, match=r"none\.pte: No such file"):
        Program.load(tmp_path / "none.pte")


def test_a_closed_program_refuses_to_run(program):
    inputs, outputs = arrays(program)
    program.close()
    with pytest.raises(RuntimeLibraryError, match="closed"):
        program.execute(inputs, outputs)


def test_a_missing_library_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libtrajsyn_runtime.so")
    library.native_library.cache_clear()
    try:
        with pytest.raises(RuntimeLibraryError, match=r"python -m edge_sdk\.runtime\.build"):
            Program.load(bytes(100))
    finally:
        monkeypatch.undo()
        library.native_library.cache_clear()


def test_a_second_build_has_nothing_to_do(runtime):
    assert native_build.build() is False


def test_buffers_start_on_a_cache_line_and_are_zero():
    for shape in [(1,), (3, 5), (7, 1, 2)]:
        array = aligned_zeros(shape)
        assert array.ctypes.data % 64 == 0
        assert array.shape == shape
        assert not array.any()


def run_python(code, *arguments, **kwargs):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, **kwargs).stdout


@pytest.mark.parametrize(
    "package", ["edge_sdk.runtime", "edge_sdk.training", "edge_sdk.commands.export"]
)
def test_importing_loads_numpy_level_code_only(package):
    heavy = {"torch", "executorch", "sklearn", "PIL", "onnx", "onnxruntime", "scipy"}
    code = f"import sys, {package}; print(*({heavy!r} & set(sys.modules)))"
    assert run_python(code).split() == []


def test_the_library_folder_runs_alone(tmp_path, small_training_program):
    """Another folder, no torch, no executorch, no LD_LIBRARY_PATH: the same bits come out."""
    shutil.copytree(native_build.LIB, tmp_path / "lib")
    small_training_program.save(tmp_path / "program.tsp")
    code = """
import sys
from pathlib import Path
for name in ("torch", "executorch"):
    sys.modules[name] = None
import numpy as np
from edge_sdk.runtime import ProgramFile, library
folder = Path(sys.argv[1])
library.LIBRARY = folder / "lib" / "libtrajsyn_runtime.so"
loaded = ProgramFile.load(folder / "program.tsp").load_program(threads=1)
inputs = [np.full(i.shape, 0.1, np.float32) for i in loaded.inputs]
outputs = [o.empty() for o in loaded.outputs]
loaded.execute(inputs, outputs)
mapped = Path("/proc/self/maps").read_text()
assert str(folder) in mapped and "site-packages/executorch" not in mapped and "torch" not in (
    mapped.replace("executorch", ""))
print(outputs[0].tobytes().hex(), outputs[-1].tobytes().hex())
"""
    alone = run_python(code, tmp_path, env={"PATH": "/usr/bin"}).split()
    loaded = small_training_program.load_program(threads=1)
    inputs = [np.full(i.shape, 0.1, np.float32) for i in loaded.inputs]
    outputs = [o.empty() for o in loaded.outputs]
    loaded.execute(inputs, outputs)
    assert alone == [outputs[0].tobytes().hex(), outputs[-1].tobytes().hex()]


def test_program_file_load_program_uses_the_threads_it_is_told(small_training_program):
    assert isinstance(small_training_program, ProgramFile)
    program = small_training_program.load_program(threads=2)
    try:
        assert thread_count() == 2
    finally:
        program.close()
        set_threads(1)
