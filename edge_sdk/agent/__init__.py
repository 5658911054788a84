"""The long-running client: connection, outbox, model slots, states.

Importing it loads not even numpy, which the first round of training brings; onnxruntime runs in a
child process of its own.
"""
