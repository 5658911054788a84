"""What a device loads: numpy-level code, and nothing that only a server has."""

import json
import subprocess
import sys

import pytest

FORBIDDEN = {
    "torch", "executorch", "onnx", "onnxruntime", "onnxscript", "matplotlib", "pandas", "sklearn",
    "scipy", "sqlalchemy", "pydantic", "typer", "rich", "PIL", "server_toolkit",
}  # fmt: skip


# What only a round of training needs; a device waits most of its life.
FOR_TRAINING = {"numpy", "safetensors", "zstandard"}
MAX_IDLE_MB = 40


def fresh(code):
    """What a new process that runs `code` has loaded, and its peak memory."""
    report = (
        "import sys, json\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "peak_kb = next(int(x.split()[1]) for x in lines if x.startswith('VmHWM'))\n"
        "names = sorted({m.split('.')[0] for m in sys.modules})\n"
        "print(json.dumps({'modules': names, 'peak_mb': peak_kb / 1024}))"
    )
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code", ["import edge_sdk.agent.agent", "import edge_sdk.cli; edge_sdk.cli.main(['agent'])"]
)
def test_an_agent_that_waits_is_small(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # there is no device.toml: the command ends when all is loaded
    found = fresh(code)
    assert FOR_TRAINING & set(found["modules"]) == set()
    assert found["peak_mb"] < MAX_IDLE_MB


@pytest.mark.parametrize(
    "module",
    [
        "edge_sdk.agent",
        "edge_sdk.agent.agent",
        "edge_sdk.agent.local_training",
        "edge_sdk.cli",
        "edge_sdk.inference",
    ],
)
def test_importing_the_agent_loads_neither_torch_nor_anything_of_the_server(module):
    assert set(fresh(f"import {module}")["modules"]) & FORBIDDEN == set()


def test_the_device_packages_never_name_the_server(request):
    sources = [
        path
        for package in ("edge_sdk", "models")
        for path in (request.config.rootpath / package).rglob("*.py")
    ]
    assert len(sources) > 20
    assert [p.name for p in sources if "server_toolkit" in p.read_text()] == []
