"""Random numbers that nobody can predict, for noise that nobody may take off again."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

BLOCK = 8192  # numbers made at a time: small enough for the cache, large enough for numpy
_BITS = 53  # of a float64 in [0, 1)

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class SecureRandom:
    """Uniform and normal numbers from ChaCha20's key stream under a key of the system's entropy.

    numpy's generators are no substitute: whoever sees enough of their output, or knows the seed,
    knows the rest. `insecure_seed` replaces the key for tests and comparisons.
    """

    def __init__(self, *, insecure_seed: int | None = None) -> None:
        key = secrets.token_bytes(32)
        if insecure_seed is not None:
            key = hashlib.sha256(str(insecure_seed).encode()).digest()
        self._key, self._calls = key, 0
        self._zeros, self._bytes = memoryview(bytes(8 * BLOCK)), bytearray(8 * BLOCK)
        self._raw = np.frombuffer(self._bytes, "<u8")
        self._uniform, self._scratch = np.empty(BLOCK), np.empty((2, BLOCK // 2))

    def choose(self, count: int, probability: float) -> npt.NDArray[np.int64]:
        """Return each of `range(count)` with `probability`, independently (a Poisson sample)."""
        chosen = [np.empty(0, np.int64)]
        for first in range(0, count, BLOCK):
            part = self._uniforms(min(BLOCK, count - first)) < probability
            chosen.append(np.flatnonzero(part) + first)
        return np.concatenate(chosen)

    def add_normal(self, values: Float32, deviation: float) -> None:
        """Add normal noise to the flat `values`, drawn and added in float64 and rounded once."""
        for first in range(0, values.size, BLOCK):
            part = values[first : first + BLOCK]
            noise = self._normals(part.size)
            noise *= deviation
            noise += part
            part[...] = noise

    def _uniforms(self, count: int) -> Float64:
        """Return `count` numbers in [0, 1), at most a block, valid until the next call."""
        # A nonce for each call, so that no counter inside ever comes to its end.
        nonce = bytes(8) + self._calls.to_bytes(8, "little")
        self._calls += 1
        encryptor = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()
        encryptor.update_into(self._zeros[: 8 * count], self._bytes)
        uniform, raw = self._uniform[:count], self._raw[:count]
        np.right_shift(raw, 64 - _BITS, out=raw)
        np.multiply(raw, 2.0**-_BITS, out=uniform)
        return uniform

    def _normals(self, count: int) -> Float64:
        """Return standard normal numbers (Box and Muller 1958), which reach to 8.5; as above."""
        half = (count + 1) // 2
        uniform = self._uniforms(2 * half)
        radius, angle = uniform[:half], uniform[half:]
        np.subtract(1, radius, out=radius)  # in (0, 1], so that the logarithm is finite
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle *= 2 * np.pi
        cosine, sine = self._scratch[0, :half], self._scratch[1, :half]
        np.cos(angle, out=cosine)
        np.sin(angle, out=sine)
        np.multiply(radius, sine, out=angle)
        radius *= cosine
        return uniform[:count]
