"""Trajectory matching: from the weights that the server received to a synthetic proxy set."""
