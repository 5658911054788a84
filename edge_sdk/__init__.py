"""The device: local training, the wire protocol and the long-running agent."""

# Here and not in pyproject.toml, which reads it: asking the installed package for its version loads
# 70 modules and 5 MB, on a device for months.
__version__ = "0.1.0"
