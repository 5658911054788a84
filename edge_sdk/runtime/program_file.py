"""The file in which a program travels to a device: the program and how to feed it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.schema import bounded, decode, parse_json
from edge_sdk.runtime.buffers import aligned_zeros
from edge_sdk.runtime.program import Program
from models import ModelSpec, ParameterLayout, SpecError, layout_of

MAX_FILE_BYTES = 64 << 20
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_MICRO_BATCH = 4096
_METADATA_KEY = "trajsyn_program"

Kind = Literal["training", "attack", "evaluation", "inference"]
Precision = Literal["fp32", "int8"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """How a parameter lies in the program: `reshape(view)`, `transpose(axes)`, `reshape(shape)`."""

    view: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.view))):
            raise ValueError(f"axes {self.axes} do not permute {len(self.view)} dimensions")
        if math.prod(self.view) != math.prod(self.shape) or min(self.view + self.shape) < 1:
            raise ValueError(f"{self.view} and {self.shape} differ in size")

    def to_program(self, array: Float32) -> Float32:
        """Return a parameter, or its gradient, as it lies in the program; perhaps a view."""
        return array.reshape(self.view).transpose(self.axes).reshape(self.shape)

    def from_program(self, array: Float32, shape: tuple[int, ...]) -> Float32:
        """Return an array of the program in torch's shape; perhaps a view."""
        permuted = array.reshape([self.view[a] for a in self.axes])
        return permuted.transpose(np.argsort(self.axes)).reshape(shape)


@dataclass(frozen=True)
class ProgramParameter:
    """A parameter of the network in the program's eyes.

    `form` is None where the loss cannot depend on the parameter (a convolution's bias before an
    instance norm): it is no input, and its gradient is exactly zero.
    """

    name: str
    shape: tuple[int, ...]
    form: Form | None

    @property
    def program_shape(self) -> tuple[int, ...]:
        """The array's shape while the program runs; torch's where it is no input."""
        return self.form.shape if self.form else self.shape


@dataclass(frozen=True)
class GateResult:
    """What the export gate measured against float64 autograd, as a fraction of each norm."""

    max_relative_error: float
    tolerance: float
    worst: str


@dataclass(frozen=True, kw_only=True)
class InferenceResult:
    """How an inference program was made, and on how many images the gate looked at it.

    `agreement` is the share of those images that it puts into the class of the float64 network.
    `gate.max_relative_error` is that of the logits on the same images.
    """

    precision: Precision
    calibration_images: int
    checked_images: int
    agreement: float


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """A program with its description.

    A training program takes images `(micro_batch, H, W, C)`, label rows `(micro_batch, classes)`
    and every parameter with a form, in layout order; it gives the summed loss `(1,)`, the logits
    `(micro_batch, classes)` and the gradients in the same order. A row of labels that is all zero
    counts nothing. An attack program gives the images' gradient in place of the parameters'. An
    evaluation program takes images and parameters and gives the logits. An inference program, the
    only kind with `inference`, has its weights inside: it takes images alone and gives the logits.
    All arrays are float32.

    A training program with `ranges` simulates int8: behind the parameters it takes the least and
    the largest input `(2,)` of each layer that it names, and behind the gradients it gives those
    that it saw in each image, `(micro_batch, 2)`. An empty range, `(1, -1)`, rounds nothing. With
    `int8_arithmetic` its large convolutions multiply in int8, and an empty range there is the
    batch's own.
    """

    kind: Kind
    spec: ModelSpec
    micro_batch: int
    gate: GateResult
    parameters: tuple[ProgramParameter, ...]
    pte: bytes
    ranges: tuple[str, ...] = ()
    int8_arithmetic: bool = False
    inference: InferenceResult | None = None

    @cached_property
    def layout(self) -> ParameterLayout:
        """The network's layout."""
        return layout_of(self.spec)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.spec.image_size, self.spec.image_size, self.spec.channels

    @property
    def is_input(self) -> tuple[bool, ...]:
        """For each parameter in layout order: whether the program takes it."""
        return tuple(p.form is not None for p in self.parameters)

    def load_program(self, *, threads: int | None = None) -> Program:
        """Load the program; raises `RuntimeLibraryError` or `ProtocolError` for a misfit."""
        program = Program.load(self.pte, threads=threads)
        inputs, outputs = self._expected_shapes()
        found = [i.shape for i in program.inputs], [o.shape for o in program.outputs]
        types = {i.dtype for i in program.inputs + program.outputs}
        if found != (inputs, outputs) or types != {np.dtype(np.float32)}:
            program.close()
            raise ProtocolError("the program's inputs and outputs are not those that it describes")
        return program

    def to_program(self, flat: Float32) -> list[Float32]:
        """Return every parameter of the flat vector in program form, as new aligned arrays.

        The list is in layout order and holds the parameters that are no inputs too, so that weight
        decay reaches them. Raises `ValueError` for a vector of another layout.
        """
        arrays = []
        for parameter, array in zip(self.parameters, self.layout.split(flat).values(), strict=True):
            target = cast(Float32, aligned_zeros(parameter.program_shape))
            form = parameter.form
            if form is None:
                target[...] = array
            else:
                target[...] = form.to_program(array)
            arrays.append(target)
        return arrays

    def from_program(self, arrays: Sequence[Float32]) -> Float32:
        """Return the flat vector of `to_program`'s arrays; raises `ValueError` for a misfit."""
        named = {}
        for parameter, array in zip(self.parameters, arrays, strict=True):
            form = parameter.form
            if array.shape != parameter.program_shape:
                raise ValueError(
                    f"{parameter.name}: expected {parameter.program_shape}, got {array.shape}"
                )
            if form is not None:
                array = form.from_program(array, parameter.shape)
            named[parameter.name] = array
        return self.layout.join(named)

    def to_bytes(self) -> bytes:
        """Return the file: safetensors with one uint8 tensor and the description as metadata."""
        description = _Description(
            format="trajsyn-program-1",
            kind=self.kind,
            spec=self.spec.to_dict(),
            layout=self.layout.fingerprint,
            image_shape=self.image_shape,
            micro_batch=self.micro_batch,
            gate=self.gate,
            parameters=self.parameters,
            sha256=hashlib.sha256(self.pte).hexdigest(),
            ranges=self.ranges,
            int8_arithmetic=self.int8_arithmetic,
            inference=self.inference,
        )
        text = json.dumps(dataclasses.asdict(description), sort_keys=True)
        pte = np.frombuffer(self.pte, np.uint8)
        return bytes(safetensors.numpy.save({"pte": pte}, metadata={_METADATA_KEY: text}))

    @classmethod
    def from_bytes(cls, data: bytes) -> ProgramFile:
        """Read `to_bytes`; raises `ProtocolError` saying what is wrong with the file."""
        if len(data) > MAX_FILE_BYTES:
            raise ProtocolError(f"a program of {len(data)} bytes; the limit is {MAX_FILE_BYTES}")
        try:
            tensors = safetensors.numpy.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"not a program file: {error}") from error
        if set(tensors) != {"pte"} or tensors["pte"].dtype != np.uint8:
            raise ProtocolError("not a program file: it must hold one uint8 tensor named pte")
        pte = tensors["pte"].tobytes()
        description = _description(data)
        if hashlib.sha256(pte).hexdigest() != description.sha256:
            raise ProtocolError("the program's bytes do not have the hash of its description")
        try:
            spec = ModelSpec.from_dict(description.spec)
        except (SpecError, TypeError) as error:
            raise ProtocolError(f"program file: {error}") from error
        result = cls(
            kind=description.kind,
            spec=spec,
            micro_batch=description.micro_batch,
            gate=description.gate,
            parameters=description.parameters,
            pte=pte,
            ranges=description.ranges,
            int8_arithmetic=description.int8_arithmetic,
            inference=description.inference,
        )
        result._check(description)
        return result

    def save(self, path: Path | str) -> None:
        """Write the file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path | str) -> ProgramFile:
        """Read a file; raises `ProtocolError` naming it when it is missing or wrong."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ProtocolError(f"{path}: {error.strerror}") from error
        try:
            return cls.from_bytes(data)
        except ProtocolError as error:
            raise ProtocolError(f"{path}: {error}") from error

    def _check(self, description: _Description) -> None:
        if description.layout != self.layout.fingerprint:
            raise ProtocolError(
                f"the program was made for layout {description.layout}, "
                f"its own network has {self.layout.fingerprint}"
            )
        if description.image_shape != self.image_shape:
            raise ProtocolError(f"image shape {description.image_shape} is not the network's")
        found = [(p.name, p.shape) for p in self.parameters]
        if found != [(p.name, p.shape) for p in self.layout.parameters]:
            raise ProtocolError("the parameters are not the network's")
        for p in self.parameters:
            if p.form and math.prod(p.form.view) != math.prod(p.shape):
                raise ProtocolError(f"{p.name}: {p.form.view} is no view of {p.shape}")
        if self.ranges and (self.kind != "training" or len(set(self.ranges)) < len(self.ranges)):
            raise ProtocolError(f"ranges do not fit a program of kind {self.kind}")
        if self.int8_arithmetic and not self.ranges:
            raise ProtocolError("int8 arithmetic without ranges")
        is_inference = self.kind == "inference"
        if is_inference != (self.inference is not None) or (is_inference and any(self.is_input)):
            raise ProtocolError(f"the description does not fit a program of kind {self.kind}")

    def _expected_shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        images = (self.micro_batch, *self.image_shape)
        rows = (self.micro_batch, self.spec.classes)
        taken = [p.form.shape for p in self.parameters if p.form]
        if self.kind == "training":
            ranges = [(2,) for _ in self.ranges]
            observed = [(self.micro_batch, 2) for _ in self.ranges]
            return [images, rows, *taken, *ranges], [(1,), rows, *taken, *observed]
        if self.kind == "attack":
            return [images, rows, *taken], [(1,), rows, images]
        return [images, *taken], [rows]


@dataclass(frozen=True, kw_only=True)
class _Description:
    """The metadata entry, as JSON."""

    format: Literal["trajsyn-program-1"]
    kind: Kind
    spec: dict[str, Any]
    layout: str
    image_shape: tuple[int, int, int]
    micro_batch: int = bounded(low=1, high=MAX_MICRO_BATCH)
    gate: GateResult
    parameters: tuple[ProgramParameter, ...]
    sha256: str
    ranges: tuple[str, ...] = ()
    int8_arithmetic: bool = False
    inference: InferenceResult | None = None


def _description(data: bytes) -> _Description:
    """Return the metadata of safetensors bytes that the library has already accepted."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = (header.get("__metadata__") or {}).get(_METADATA_KEY)
    if text is None:
        raise ProtocolError("not a program file: it has no description")
    fields = parse_json(text.encode(), max_bytes=MAX_DESCRIPTION_BYTES)
    return decode(_Description, fields)
