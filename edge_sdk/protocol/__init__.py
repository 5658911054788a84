"""The wire between device and server: topics, signed messages, tensors, chunked transfer.

Nothing here opens a socket; both sides feed these pure functions and state machines from their
own MQTT client. `docs/protocol.md` tells the story with the messages in order.
"""
