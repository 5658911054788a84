"""The benchmark that judges: every arm and its controls on the same federated runs."""
