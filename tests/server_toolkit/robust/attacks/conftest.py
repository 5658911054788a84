import pytest
import torch

from tests.server_toolkit.robust.attacks.models_for_tests import digit_model, digits


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def hardened():
    """A digit model that keeps part of its accuracy under attack."""
    return digit_model(hardened=True)


@pytest.fixture(scope="package")
def plain():
    """A digit model trained without any defence."""
    return digit_model(hardened=False)


@pytest.fixture(scope="package")
def held_out():
    """Digits that no model has seen."""
    images, labels = digits()
    return images[:40], labels[:40]
