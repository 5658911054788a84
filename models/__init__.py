"""What device and server agree on: architectures and the order of their parameters.

Importing this package loads numpy only. `models.networks` builds the torch modules.
"""

from models.layout import Parameter, ParameterLayout, layout_of
from models.spec import ModelSpec, SpecError

__all__ = ["ModelSpec", "Parameter", "ParameterLayout", "SpecError", "layout_of"]
