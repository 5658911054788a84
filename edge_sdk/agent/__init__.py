"""The long-running client: connection, outbox, model slots, states.

Importing it loads numpy-level code only; onnxruntime runs in a child process of its own.
"""
