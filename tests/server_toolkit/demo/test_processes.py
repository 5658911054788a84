"""The demo's children: ended with it, started again after a kill, their last words passed on."""

import signal
import time

import pytest

from server_toolkit.demo.processes import Processes
from server_toolkit.errors import ServerError

SLEEP = ["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"]


def ended(process, timeout_s=20):
    process.wait(timeout_s)
    return True


def test_leaving_the_block_ends_what_still_runs(tmp_path):
    with Processes(tmp_path) as processes:
        process = processes.start("sleeper", SLEEP)
        assert process.poll() is None
    assert process.poll() is not None


def test_a_killed_child_is_started_again_with_the_same_arguments(tmp_path):
    with Processes(tmp_path) as processes:
        first = processes.start("sleeper", SLEEP)
        assert not processes.restart_if_killed("sleeper")
        first.send_signal(signal.SIGKILL)
        assert ended(first)
        assert processes.restart_if_killed("sleeper")
        assert processes.check("sleeper")


def test_a_child_that_fails_by_itself_is_not_started_again_and_its_last_words_are_told(tmp_path):
    with Processes(tmp_path) as processes:
        process = processes.start("failing", ["timeit", "raise SystemExit('no disk left')"])
        assert ended(process)
        assert not processes.restart_if_killed("failing")
        with pytest.raises(ServerError, match="no disk left"):
            processes.check("failing")


def test_run_waits_for_the_end(tmp_path):
    with Processes(tmp_path) as processes:
        start = time.monotonic()
        processes.run("short", ["timeit", "-n", "1", "-r", "1", "import time; time.sleep(0.3)"])
        assert time.monotonic() - start >= 0.3
        assert not processes.check("short")
