"""Pulling blobs: what does not come never holds up what would."""

from edge_sdk.agent.fetcher import STALLED_S, Fetcher
from edge_sdk.protocol.messages import BlobRef

MISSING, THERE = (BlobRef(sha256=digit * 64, size=10) for digit in "ab")


def test_a_blob_that_never_comes_lets_the_next_one_pass_and_is_tried_again(tmp_path):
    fetcher = Fetcher(tmp_path, device="cam-01")
    assert fetcher.want([MISSING, THERE], 0.0).sha256 == MISSING.sha256
    asked = []
    for second in range(1, int(3 * STALLED_S)):
        need = fetcher.on_tick(float(second))
        if need is not None and need.sha256 not in asked[-1:]:
            asked.append(need.sha256)
    assert asked == [MISSING.sha256, THERE.sha256, MISSING.sha256]


def test_a_blob_that_is_wanted_alone_is_asked_for_without_end(tmp_path):
    fetcher = Fetcher(tmp_path, device="cam-01")
    fetcher.want([MISSING], 0.0)
    needs = [fetcher.on_tick(float(second)) for second in range(1, int(3 * STALLED_S))]
    assert {need.sha256 for need in needs if need is not None} == {MISSING.sha256}
