"""Small programs that several tests train with, exported once."""

import pytest
import torch

from edge_sdk.export import attack_program, training_program
from tests.server_toolkit.simulate.fleets import CONVNET, LINEAR, MIXED


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def linear_program():
    return training_program(LINEAR)


@pytest.fixture(scope="session")
def programs():
    """The training and the attack program of each network."""
    return {
        spec: {"program": training_program(spec), "attack_program": attack_program(spec)}
        for spec in (CONVNET, MIXED)
    }
