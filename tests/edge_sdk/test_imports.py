"""What a device loads: numpy-level code, and nothing that only a server has."""

import subprocess
import sys

import pytest

FORBIDDEN = {
    "torch", "executorch", "onnx", "onnxruntime", "onnxscript", "matplotlib", "pandas", "sklearn",
    "scipy", "sqlalchemy", "pydantic", "typer", "rich", "PIL", "server_toolkit",
}  # fmt: skip


@pytest.mark.parametrize(
    "module", ["edge_sdk.agent", "edge_sdk.agent.agent", "edge_sdk.cli", "edge_sdk.inference"]
)
def test_importing_the_agent_loads_neither_torch_nor_anything_of_the_server(module):
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & FORBIDDEN == set()


def test_the_device_packages_never_name_the_server(request):
    sources = [
        path
        for package in ("edge_sdk", "models")
        for path in (request.config.rootpath / package).rglob("*.py")
    ]
    assert len(sources) > 20
    assert [p.name for p in sources if "server_toolkit" in p.read_text()] == []
