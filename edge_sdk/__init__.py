"""The device: local training, the wire protocol and the long-running agent."""
