from dataclasses import replace

import pytest

from server_toolkit.benchmark.arms import ARMS, choose_arms
from server_toolkit.benchmark.presets import PRESETS, epsilons_of, with_choices
from server_toolkit.benchmark.recipe import Schedule
from server_toolkit.benchmark.robustness import plan_benchmark
from server_toolkit.errors import ConfigError
from tests.server_toolkit.benchmark.made_up import tiny


def cells(preset=None, **changes):
    plan = plan_benchmark(preset or tiny(**changes), directory=None)
    return {(c.arm.name, c.partition, c.epsilon, c.server_images): c for c in plan.cells}


def scheduled(**schedule):
    return tiny(recipe=replace(PRESETS["tiny"].recipe, schedule=Schedule(**schedule)))


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


@pytest.mark.parametrize("end_in_round", [False, True])
@pytest.mark.parametrize("distil_again", [False, True])
def test_a_schedule_gives_all_arms_the_same_rounds(end_in_round, distil_again):
    preset = scheduled(
        cycles=2, learning_rate=0.01, end_in_round=end_in_round, distil_again=distil_again
    )
    own = by_arm(preset)
    del own["server_at_real"]
    for cell in own.values():
        spans = rounds(cell)
        assert [begin for begin, _ in spans] == [0] + [end for _, end in spans[:-1]]
        assert spans[-1][1] == preset.fleet.rounds
        devices_keep = [piece.inputs["state"].key for piece in cell.federated[1:]]
        assert devices_keep == [piece.key for piece in cell.federated[:-1]]
        rates = {
            p.settings["rounds"][0]: p.settings["fleet"]["learning_rate"] for p in cell.federated
        }
        assert {rate for begin, rate in rates.items() if begin} == {0.01}
    ends = {"end_in_round": "federate", "end_in_harden": "harden"}
    kind = ends["end_in_round" if end_in_round else "end_in_harden"]
    assert own["trajsyn_noise"].evaluation.inputs["model"].kind == kind


def test_a_method_and_its_control_harden_alike():
    own = by_arm(scheduled(cycles=1))
    for name in ("trajsyn_noise", "trajsyn_server_set"):
        method, control = own[name], own[ARMS[name].control]
        ours, theirs = (
            [p for p in cell.server if p.kind == "harden"] for cell in (method, control)
        )
        assert [p.settings for p in ours] == [p.settings for p in theirs]
        assert ours[0].inputs["start"].key == theirs[0].inputs["start"].key
        assert ours[0].inputs["teacher"].key == theirs[0].inputs["teacher"].key
        assert rounds(method) == rounds(control)


def test_distilling_again_reads_the_hardened_models_rounds():
    own = by_arm(scheduled(cycles=1, distil_again=True))["trajsyn_noise"]
    first, second = own.proxies
    assert second.inputs["trajectory"].inputs["start"].kind == "harden"
    assert "start" not in first.inputs["trajectory"].inputs
    last = own.evaluation.inputs["model"]
    assert {name for name in last.inputs if name.startswith("proxy")} == {"proxy0", "proxy1"}


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


def test_a_schedule_longer_than_the_federation_is_refused():
    with pytest.raises(ConfigError, match="at least one has to come before it"):
        scheduled(cycles=3)
