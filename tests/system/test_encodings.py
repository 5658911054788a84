"""Real devices and a real server with another encoding of updates, and with two in one run."""

from server_toolkit.demo.settings import set_values

from .conftest import DEVICES


def test_a_run_goes_on_when_its_encoding_is_changed_and_both_are_rebuilt(fleet):
    set_values(fleet.config, {("training", "encoding"): "topk-0.05"})
    fleet.start("server")
    fleet.start("cam-01")
    fleet.wait(lambda: len(fleet.ledger().updates()) == 1, "the first update")
    fleet.kill("server")
    set_values(fleet.config, {("training", "encoding"): "int4"})
    fleet.start("server")
    fleet.start("cam-02")
    fleet.wait(lambda: fleet.ledger().latest_round() >= 3, "three rounds")
    encodings = {(row.round, row.device): row.encoding for row in fleet.ledger().updates()}
    assert encodings.pop((0, "cam-01")) == "topk-0.05"
    assert sorted(encodings) == [(0, "cam-02"), *((n, d) for n in (1, 2) for d in DEVICES)]
    assert set(encodings.values()) == {"int4"}
    assert "are as they were received" in fleet.server("trajectories verify").stdout
