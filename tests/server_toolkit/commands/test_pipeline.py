import json
import signal
import time

import numpy as np
import pytest

from edge_sdk.protocol.messages import Release, decode_message
from edge_sdk.protocol.signing import load_public_key, open_sealed
from server_toolkit.config import load_config
from server_toolkit.stages.pipeline import distill_settings, harden_settings, scheduled_settings
from server_toolkit.stages.workspace import Workspace

PIPELINE = ("pipeline", "--threads", "1", "--device", "cpu")


def newest_manifest(fleet) -> Release:
    key = load_public_key(fleet.directory / "keys" / "server.pub")
    envelope = fleet.ledger().latest_release().envelope
    manifest = decode_message(open_sealed(envelope, key), (Release,))
    assert isinstance(manifest, Release)
    return manifest


def made(fleet) -> list[tuple[str, str]]:
    return [(row.kind, row.name) for row in fleet.ledger().artefacts()]


def test_a_pipeline_that_is_terminated_carries_on_to_the_release(fleet):
    process = fleet.start(*PIPELINE)
    deadline = time.monotonic() + 150
    while not list(fleet.directory.glob("proxy/trajsyn.*.checkpoint")) and not made(fleet):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert fleet.ledger().latest_release() is None

    process = fleet.start(*PIPELINE)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "release 1 (trajsyn)" in output
    assert made(fleet) == [
        ("proxy", "trajsyn"),
        ("model", "trajsyn"),
        ("evaluation", "fedavg"),
        ("evaluation", "trajsyn"),
    ]
    evaluation = json.loads((fleet.directory / "evaluations" / "trajsyn.json").read_text())
    manifest = newest_manifest(fleet)
    assert manifest.int8.blob.sha256 == evaluation["files"]["int8"]["sha256"]
    assert evaluation["int8_calibrated_on"] == "proxy set trajsyn"

    assert "nothing to do" in fleet.run(*PIPELINE)
    assert len(made(fleet)) == 4
    assert newest_manifest(fleet) == manifest


def test_between_rounds_it_hardens_the_aggregate_once(fleet):
    fleet.edit_config("rounds = 3", "rounds = 5")
    schedule = "[schedule]\nharden = [[3, 5]]\ndistil = [4]\nearly_steps = 3\n[pipeline]\n"
    fleet.edit_config("[pipeline]\n", schedule)
    command = (*PIPELINE, "--between-rounds")
    assert "round 3 will start from trajsyn-before-round-3" in fleet.run(*command)
    ledger = fleet.ledger()
    weights, _ = Workspace.open(load_config(fleet.config)).weights("trajsyn-before-round-3")
    np.testing.assert_array_equal(ledger.global_weights(3), weights)
    assert not np.array_equal(ledger.aggregate_weights(3), weights)
    log = (fleet.directory / "models" / "trajsyn-before-round-3.log.jsonl").read_text()
    assert len(log.splitlines()) == 3  # steps of the schedule, not of [harden]
    assert "nothing to harden" in fleet.run(*command)
    assert made(fleet) == [("proxy", "trajsyn-start"), ("model", "trajsyn-before-round-3")]
    assert ledger.latest_release() is None


def test_a_schedule_distils_the_path_of_the_hardened_model_and_keeps_what_was_made(fleet):
    """Rounds 1 and 2 of the finished run stand for rounds that started hardened."""
    fleet.edit_config(
        "[pipeline]\n",
        "[schedule]\nharden = [[1, 9]]\ndistil = [2, 3]\nearly_steps = 3\n[pipeline]\n",
    )
    fleet.edit_config("rounds = 3", "rounds = 9")
    fleet.edit_config("[distill]\n", "[distill]\nrounds_ahead = 2\n")
    assert "trajsyn-before-round-3" in fleet.run(*PIPELINE, "--between-rounds")
    workspace = Workspace.open(load_config(fleet.config))
    first, _ = workspace.proxy("trajsyn-before-round-2")
    second, _ = workspace.proxy("trajsyn-before-round-3")
    assert first.metadata["segments"] == ["fleet 1 to 2"]
    assert second.metadata["segments"] == ["fleet 1 to 2", "fleet 2 to 3"]
    assert len(second.images) == 2 * len(first.images)
    np.testing.assert_array_equal(second.images[: len(first.images)], first.images)
    assert not np.array_equal(second.images[len(first.images) :], first.images)

    ledger, before = fleet.ledger(), made(fleet)
    ledger.begin_round(now_s=0.0, deadline_s=1.0)
    ledger.close_round(3, ledger.global_weights(3) * 1.01, now_s=1.0, next_deadline_s=None)
    assert "trajsyn-before-round-4" in fleet.run(*PIPELINE, "--between-rounds")
    assert made(fleet) == [*before, ("model", "trajsyn-before-round-4")]


def test_a_gate_that_is_missed_releases_nothing_and_says_by_how_much(fleet):
    fleet.edit_config("min_robust_gain = -1.0", "min_robust_gain = 0.9")
    out = fleet.run(*PIPELINE, code=6)
    assert "trajsyn may not be released" in out
    assert "at least 90.0 are wanted" in out
    assert fleet.ledger().latest_release() is None


@pytest.mark.parametrize(
    ("arm", "asked", "start", "real_images"),
    [
        ("trajsyn_server_set", "false", "server_set", True),
        ("trajsyn_noise", "true", "structured", False),
        ("mine", "true", "noise", True),
        ("mine", "false", "noise", False),
    ],
)
def test_the_name_of_the_arm_decides_whether_real_images_are_used(
    fleet, arm, asked, start, real_images
):
    fleet.edit_config('arm = "trajsyn"', f'arm = "{arm}"')
    fleet.edit_config("[harden]\n", f"[harden]\nwith_server_set = {asked}\n")
    given = "server_set" if arm == "trajsyn_noise" else "noise"
    fleet.edit_config("[distill]\n", f'[distill]\nstart = "{given}"\n')
    workspace = Workspace.open(load_config(fleet.config))
    assert distill_settings(workspace).start == start
    assert harden_settings(workspace).with_server_set == real_images


def test_a_schedule_hardens_on_random_shapes_and_the_real_images_share_of_a_batch(fleet):
    fleet.edit_config('arm = "trajsyn"', 'arm = "trajsyn_server_set"')
    fleet.edit_config("rounds = 3", "rounds = 9")
    fleet.edit_config(
        "[pipeline]\n",
        "[schedule]\nharden = [[3, 5]]\ndistil = [4]\nearly_steps = 2\n"
        "start_images_per_class = 2\n[pipeline]\n",
    )
    fleet.run(*PIPELINE, "--between-rounds")
    workspace = Workspace.open(load_config(fleet.config))
    start, _ = workspace.proxy("trajsyn_server_set-start")
    assert len(start.images) == 20
    real, _ = workspace.images(workspace.server_set_path())
    own = {image.tobytes() for image in real.images}
    assert own.isdisjoint(image.tobytes() for image in start.images)
    settings = scheduled_settings(workspace, 3)
    assert settings.with_server_set
    assert settings.real_share == pytest.approx(0.5)  # 100 images of 10 classes
    own = harden_settings(workspace)
    assert (settings.steps, settings.seed) == (2, own.seed + 3)
    last = scheduled_settings(workspace, workspace.config.run.rounds)
    steps = workspace.config.schedule.last_steps
    assert (last.steps, last.epsilon, last.real_share) == (steps, own.epsilon, 0.5)
