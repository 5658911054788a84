"""Local training on a device: SGD over a training program, data sets and partitions.

Importing this package loads numpy-level code only.
"""

from edge_sdk.training.adversarial import train_adversarially
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.evaluate import accuracy, evaluate, logits
from edge_sdk.training.loop import TrainingResult
from edge_sdk.training.partition import load_partition, make_partition, write_partition
from edge_sdk.training.privacy import PrivateTrainingResult, train_privately
from edge_sdk.training.privacy_accountant import NoisySteps, epsilon_spent
from edge_sdk.training.sources import load_dataset, load_digits, load_folder, load_npz
from edge_sdk.training.trainer import train

__all__ = [
    "Dataset",
    "NoisySteps",
    "PrivateTrainingResult",
    "TrainingResult",
    "accuracy",
    "epsilon_spent",
    "evaluate",
    "load_dataset",
    "load_digits",
    "load_folder",
    "load_npz",
    "load_partition",
    "logits",
    "make_partition",
    "train",
    "train_adversarially",
    "train_privately",
    "write_partition",
]
