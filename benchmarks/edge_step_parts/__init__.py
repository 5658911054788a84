"""The parts of `benchmarks/edge_step.py`: what is measured, where the floor is, fresh processes."""
