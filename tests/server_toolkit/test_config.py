import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from models import ModelSpec
from models.description import to_toml
from models.layers import Convolution, InstanceNorm, MaxPool
from server_toolkit.config import load_config
from server_toolkit.demo.settings import set_values
from server_toolkit.errors import ConfigError
from server_toolkit.rounds.schedule import Schedule
from tests.server_toolkit.fleet import LAYOUT, SPEC
from tests.server_toolkit.processes import model_section, server_toml


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "server.toml"
        file.write_text(text)
        return file

    return write


def with_distill(line):
    """The template with one more line in its [distill] table, which has a comment behind it."""
    head, heading, tail = server_toml().partition("\n[distill]")
    comment, newline, rest = tail.partition("\n")
    return head + heading + comment + newline + line + "\n" + rest


def test_the_template_of_init_is_a_whole_configuration(write):
    config = load_config(write(server_toml()))
    assert config.model.spec == SPEC
    assert config.run.rounds == 2
    assert config.training.settings.batch_size == 32
    assert config.rounds.quorum == 2
    assert config.pipeline.enabled


@pytest.mark.parametrize("encoding", ["int8", "int4", "fp32", "topk-0.05", "topk-0.001"])
def test_every_encoding_can_be_chosen(write, encoding):
    text = server_toml().replace('encoding = "int8"', f'encoding = "{encoding}"')
    assert load_config(write(text)).training.encoding == encoding


def test_every_commented_key_of_the_template_exists(write):
    text = server_toml()
    lines = [
        line[2:] if line.startswith("# ") and " = " in line else line for line in text.splitlines()
    ]
    config = load_config(write("\n".join(lines)))
    assert config.broker.username == "server"
    assert config.data.test_set == "test.npz"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "batch_size = 32",
            "batchsize = 32",
            r"\[training\] batchsize is no known key.*batch_size",
        ),
        ("batch_size = 32", "batch_size = 0", r"\[training\] batch_size = 0: .*greater"),
        ("batch_size = 32", 'batch_size = "x"', r"\[training\] batch_size = 'x'"),
        ("momentum = 0.9", "momentum = nan", r"\[training\] momentum = nan"),
        ('encoding = "int8"', 'encoding = "int2"', r"\[training\] encoding = 'int2': choose"),
        ('encoding = "int8"', 'encoding = "topk-0.10"', r"encoding = 'topk-0.10': choose"),
        ("[limits]", "[limit]", r"limit is no known key; did you mean limits"),
        ("classes = 3", "", r"\[model\] classes is missing"),
        ("image_size = 8", "image_size = 3", r"\[model\] image_size is 3"),
        ("[broker]", "layers = [1]\n[broker]", r"\[model\] layers"),
        ("min_accuracy = 0.0", "min_acuracy = 0.0", r"\[release\].*min_acuracy.*min_accuracy"),
        ("[run]", "[run", r"no TOML"),
        ('name = "run-1"', 'name = "a/b"', r"\[run\] name"),
        ('host = "127.0.0.1"', 'host = ""', r"\[broker\] host"),
    ],
)
def test_a_mistake_names_file_section_key_and_remedy(write, before, after, message):
    text = server_toml()
    assert before in text
    file = write(text.replace(before, after, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_says_how_to_begin(tmp_path):
    with pytest.raises(ConfigError, match="init"):
        load_config(tmp_path / "server.toml")


def test_paths_are_relative_to_the_file(write, tmp_path):
    config = load_config(write(server_toml().replace('# tls_ca = "keys', 'tls_ca = "keys')))
    assert config.broker_settings().tls_ca == str(tmp_path / "keys" / "ca.crt")
    assert config.resolve("/absolute") == Path("/absolute")


def test_the_update_limit_comes_from_the_model(write):
    config = load_config(write(server_toml()))
    assert 4 * LAYOUT.size < config.max_update_bytes <= 4 * LAYOUT.size + (1 << 20)
    config = load_config(
        write(server_toml().replace("max_update_bytes = 0", "max_update_bytes = 9"))
    )
    assert config.max_update_bytes == 9


@dataclass(frozen=True)
class StageSettings:
    steps: int = 3
    rate: float = 0.5

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


def test_a_stages_table_becomes_its_own_settings(write):
    config = load_config(write(with_distill("steps = 5")))
    assert config.settings_of("distill", StageSettings) == StageSettings(steps=5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("step = 5", r"\[distill\] step is no known key; did you mean steps"),
        ("steps = 'x'", r"\[distill\] steps = 'x'"),
        ("steps = 0", r"\[distill\].*at least 1"),
    ],
)
def test_a_mistake_in_a_stages_table_is_named(write, line, message):
    config = load_config(write(with_distill(line)))
    with pytest.raises(ConfigError, match=message):
        config.settings_of("distill", StageSettings)


def test_the_model_section_describes_any_network(write):
    text = server_toml(
        model="channels = 3\nimage_size = 32\nclasses = 9\nmean = [0.1, 0, 1]\nstd = [1, 1, 1]\n"
    )
    assert load_config(write(text)).model.spec == ModelSpec(
        channels=3, image_size=32, classes=9, mean=(0.1, 0.0, 1.0), std=(1.0, 1.0, 1.0)
    )
    layers = (Convolution(outputs=4, kernel=5, bias=False), InstanceNorm(), MaxPool(size=2))
    chain = dataclasses.replace(SPEC, architecture="chain", layers=layers, image_size=7)
    assert load_config(write(server_toml(model=to_toml(chain)))).model.spec == chain


def test_a_wrong_layer_is_named(write):
    model = model_section() + 'layers = [{ layer = "conv", outputs = 4, kernel = 2 }]\n'
    model = model.replace("convnet", "chain").replace("width = 8\n", "").replace("depth = 2\n", "")
    with pytest.raises(ConfigError, match=r"\[model\] layers\[0\]: conv: kernel is 2"):
        load_config(write(server_toml(model=model)))


def with_schedule(*, rounds=20, enabled=True, arm="trajsyn_server_set", **values):
    """The template with these lines in its [schedule] table."""
    text = re.sub(r"(?m)^rounds = .*", f"rounds = {rounds}", server_toml(), count=1)
    text = text.replace("enabled = true", f"enabled = {str(enabled).lower()}")
    text = text.replace('arm = "trajsyn_server_set"', f'arm = "{arm}"')
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return text.replace('harden = "none"', "\n".join(lines) + "\n")


def test_the_schedule_is_none_recommended_or_windows_of_ones_own(write):
    assert load_config(write(server_toml())).hardening == Schedule()
    recommended = load_config(write(with_schedule(harden="recommended"))).hardening
    assert recommended == Schedule.recommended(20) != Schedule()
    own = load_config(write(with_schedule(harden=[[1, 4], [9, 20]], distil=[3, 20]))).hardening
    assert own == Schedule(harden=((1, 4), (9, 20)), distil=(3, 20))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"harden": "often"}, "schedule"),
        ({"harden": "recommended", "distil": [3]}, "windows of one's own"),
        ({"harden": "recommended", "enabled": False}, r"toml: \[schedule\] harden needs \[pipe"),
        ({"harden": [[4, 1]]}, "windows are pairs"),
        ({"harden": "recommended", "arm": "a" * 70}, r"arm has 70 characters"),
        ({"harden": [[1, 4]], "distil": [3, 21]}, r"round 21 is behind the last .* rounds = 20"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(write, values, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(with_schedule(**values)))


def test_a_file_whose_values_are_changed_is_never_half_there(write, monkeypatch):
    file = write(server_toml())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: 1 / 0)
        patch.setattr(Path, "write_text", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            set_values(file, {("run", "rounds"): 77})
    assert file.read_text() == server_toml()
    set_values(file, {("run", "rounds"): 77})
    assert load_config(file).run.rounds == 77
