"""One file a command of `edge-sdk`: `add_parser` describes it, `run` does it."""
