from dataclasses import replace

import numpy as np
import pytest

from server_toolkit.benchmark.arms import ARMS, choose_arms
from server_toolkit.benchmark.presets import PRESETS, epsilons_of, with_choices
from server_toolkit.benchmark.robustness import plan_benchmark
from server_toolkit.benchmark.work import trajectories_of
from server_toolkit.errors import ConfigError
from server_toolkit.rounds.between import BetweenRounds
from server_toolkit.rounds.schedule import Schedule
from tests.server_toolkit.benchmark.made_up import tiny


def cells(preset=None, **changes):
    plan = plan_benchmark(preset or tiny(**changes), directory=None)
    return {(c.arm.name, c.partition, c.epsilon, c.server_images): c for c in plan.cells}


def scheduled(**recipe):
    tiny_fleet = PRESETS["tiny"].fleet
    schedule = Schedule(harden=((1, 3), (4, 5)), distil=(2, 3))
    return tiny(
        fleet=replace(tiny_fleet, rounds=6),
        recipe=replace(
            PRESETS["tiny"].recipe,
            schedule=schedule,
            between=BetweenRounds(early_steps=7, late_steps=5),
            **recipe,
        ),
    )


def by_arm(preset):
    return {name: cell for (name, *_), cell in cells(preset).items()}


def rounds(cell):
    return [tuple(piece.settings["rounds"]) for piece in cell.federated]


def test_arms_that_differ_in_the_servers_work_share_one_federated_run():
    own = by_arm(tiny())
    runs = {name: [p.key for p in cell.federated] for name, cell in own.items()}
    assert runs["client_at"] != runs["fedavg"]
    assert runs.pop("server_at_real") == []
    del runs["client_at"]
    assert len({tuple(keys) for keys in runs.values()}) == 1


def test_a_schedule_gives_all_arms_the_same_rounds_and_hardens_once_more():
    preset = scheduled()
    own = by_arm(preset)
    del own["server_at_real"]
    for name, cell in own.items():
        spans = rounds(cell)
        assert [begin for begin, _ in spans] == [0] + [end for _, end in spans[:-1]]
        assert spans[-1][1] == preset.fleet.rounds
        devices_keep = [piece.inputs["state"].key for piece in cell.federated[1:]]
        assert devices_keep == [piece.key for piece in cell.federated[:-1]]
        hardenings = [p for p in cell.server if p.kind == "harden"]
        if name in ("fedavg", "client_at"):
            assert not hardenings
            continue
        before = [p.inputs["start"].settings["rounds"][1] for p in hardenings]
        assert before == [1, 2, 4, 6]
        last = preset.recipe.between.last_steps
        assert [p.settings["config"]["steps"] for p in hardenings] == [7, 7, 5, last]
        assert cell.evaluation.inputs["model"].key == hardenings[-1].key


def test_a_method_and_its_control_harden_alike():
    own = by_arm(scheduled())
    for name in ("trajsyn_noise", "trajsyn_server_set"):
        method, control = own[name], own[ARMS[name].control]
        ours, theirs = (
            [p.settings["config"] | {"real_share": None} for p in cell.server if p.kind == "harden"]
            for cell in (method, control)
        )
        assert ours == theirs
        assert rounds(method) == rounds(control)


def test_without_real_images_all_is_the_same_until_something_is_distilled():
    own = by_arm(scheduled())
    ours, theirs = (
        [p.key for p in own[name].server if p.kind == "harden"]
        for name in ("trajsyn_noise", "noise_only")
    )
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]


def test_real_images_are_alone_in_the_control_and_have_their_share_in_the_method():
    own = by_arm(scheduled())
    for name, share, images in (("server_set_only", None, 0), ("trajsyn_server_set", 1 / 6, 1)):
        first, *_ = (p for p in own[name].server if p.kind == "harden")
        assert first.settings["server_images"] == 2
        assert first.settings["config"]["real_share"] == (share and pytest.approx(share))
        assert sum(given.startswith("proxy") for given in first.inputs) == images


def test_an_arm_may_harden_once_beside_scheduled_ones():
    preset = replace(scheduled(), arms=("noise_only", "server_set_once", "trajsyn_noise_once"))
    own = by_arm(preset)
    for name in ("server_set_once", "trajsyn_noise_once"):
        cell = own[name]
        assert [p.key for p in cell.federated] == [p.key for p in own["fedavg"].federated]
        hardening = cell.evaluation.inputs["model"]
        assert hardening.inputs["start"].key == own["fedavg"].evaluation.inputs["model"].key
        assert hardening.settings["config"]["steps"] == preset.recipe.harden.steps
    assert {"server_set_once", "trajsyn_noise_once"}.isdisjoint(PRESETS["small"].arms)


def test_distillation_reads_the_rounds_since_the_first_hardening():
    own = by_arm(scheduled())["trajsyn_noise"]
    start, first, second = own.proxies
    assert start.settings["maker"] == "start"
    spans = [[p.settings["rounds"] for p in made.inputs.values()] for made in (first, second)]
    assert spans == [[[1, 2]], [[1, 2], [2, 3]]]
    assert first.inputs["rounds000"].inputs["start"].kind == "harden"
    *_, last = (p for p in own.server if p.kind == "harden")
    makers = [p.settings["maker"] for name, p in last.inputs.items() if name.startswith("proxy")]
    assert makers == ["trajsyn", "trajsyn"]


def test_what_hardening_changed_is_no_part_of_a_segment():
    parts = [
        {"global/3": np.float32([0]), "global/4": np.float32([1]), "state/x": np.float32([9])},
        {"global/4": np.float32([5]), "global/5": np.float32([6]), "device/a/4": np.float32([7])},
    ]
    path = trajectories_of(parts)
    assert {t: w.item() for t, w in path.global_path.items()} == {0: 0, 1: 5, 2: 6}
    assert {t: w.item() for t, w in path.unhardened.items()} == {1: 1}
    assert path.device_path["a"][1].item() == 7


def test_start_images_do_not_depend_on_what_devices_learned():
    found = cells(tiny(partitions={"iid": (0,), "dirichlet:1": (0,)}))
    starts = {c.proxies[0].key for key, c in found.items() if key[0] == "noise_only"}
    methods = {c.proxies[0].key for key, c in found.items() if key[0] == "trajsyn_noise"}
    assert (len(starts), len(methods)) == (1, 2)


def test_training_on_all_data_is_done_once_for_all_partitions():
    found = cells(tiny(partitions={"iid": (0,), "dirichlet:1": (0,)}))
    assert len({c.evaluation.key for key, c in found.items() if key[0] == "server_at_real"}) == 1


def test_every_setting_that_decides_a_result_changes_its_key():
    base = by_arm(tiny())["trajsyn_noise"].evaluation.key
    recipe, fleet = PRESETS["tiny"].recipe, PRESETS["tiny"].fleet
    for changed in (
        tiny(recipe=replace(recipe, harden=replace(recipe.harden, steps=5))),
        tiny(recipe=replace(recipe, distill=replace(recipe.distill, iterations=3))),
        tiny(fleet=replace(fleet, rounds=4)),
        tiny(judging=replace(PRESETS["tiny"].judging, square_queries=21)),
        replace(tiny(), seeds=(1,)),
    ):
        assert by_arm(changed)["trajsyn_noise"].evaluation.key != base
    assert by_arm(tiny())["trajsyn_noise"].evaluation.key == base


def test_choosing_a_method_brings_its_control_and_the_floor():
    names = [arm.name for arm in choose_arms(["trajsyn_server_set"])]
    assert names == ["fedavg", "server_set_only", "trajsyn_server_set"]
    with pytest.raises(ConfigError, match="no arm is called 'x'"):
        choose_arms(["x"])


def test_named_data_sets_have_fixed_threat_models():
    assert epsilons_of("mnist", (0.9,)) == (0.3,)
    assert epsilons_of("cifar10", ()) == (2 / 255, 8 / 255)
    assert epsilons_of("folder:/somewhere", ()) == (8 / 255,)
    assert epsilons_of("folder:/somewhere", (0.02,)) == (0.02,)


def test_server_sets_that_a_data_set_has_no_images_for_are_left_out_and_told():
    plan = plan_benchmark(with_choices(tiny(), server_images=(0, 2, 5000)), directory=None)
    assert {c.server_images for c in plan.cells} == {0, 2}
    assert "5000 images a class are left out" in plan.remarks[0]


def test_a_schedule_that_never_distils_is_refused():
    with pytest.raises(ConfigError, match="must say when the server distils"):
        replace(PRESETS["tiny"].recipe, schedule=Schedule(harden=((1, 3),)))
