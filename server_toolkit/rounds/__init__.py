"""Federated rounds: when one opens and closes, and how its updates become the next base."""
