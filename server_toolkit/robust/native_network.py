"""A torch network whose cross-entropy the devices' own runtime differentiates, faster on CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edge_sdk.runtime import Program, ProgramFile, aligned_zeros
from models.networks import Network

Float32 = npt.NDArray[np.float32]

MAX_THREADS = 256  # of the runtime


@dataclass(frozen=True)
class Programs:
    """The programs of one network, all for micro-batches of the same size."""

    training: ProgramFile
    attack: ProgramFile
    evaluation: ProgramFile

    @property
    def micro_batch(self) -> int:
        """How many images each takes at a time."""
        return self.training.micro_batch


class NativeNetwork(nn.Module):
    """`network` on a CPU, with its parameters and its logits, and three faster ways through it.

    `cross_entropy` gives gradients by the parameters, `image_gradient` by the images, and where no
    gradients are recorded the forward pass is a program too. Otherwise it is torch's. Every call
    reads the parameters anew, so they may be changed in place. Images `(N, C, H, W) float32`,
    targets `(N, classes) float32`: probabilities, or zeros for an image that does not count. Runs
    on as many threads as torch.
    """

    def __init__(self, network: Network, programs: Programs) -> None:
        super().__init__()
        self.network = network
        # Listed once: torch searches all modules each time, which took a tenth of a step.
        self._tensors = list(network.parameters())
        self._forms = [(p.form, p.shape) for p in programs.training.parameters]
        self._programs = programs
        self._loaded: dict[str, tuple[Program, list[Float32]]] = {}
        size, spec = programs.micro_batch, network.spec
        shapes = [(size, *programs.training.image_shape), (size, spec.classes)]
        shapes += [form.shape for form, _ in self._forms if form is not None]
        self._images, self._rows, *self._weights = (
            cast(Float32, aligned_zeros(shape)) for shape in shapes
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, classes)`."""
        if torch.is_grad_enabled():
            return cast(Tensor, self.network(images))
        logits = torch.empty(len(images), self._rows.shape[1])
        for part in self._parts(images):
            (found,) = self._run("evaluation")
            logits[part] = torch.from_numpy(found)[: len(logits[part])]
        return logits

    def cross_entropy(self, images: Tensor, target: Tensor) -> Tensor:
        """Return Σ CE(target, f(x)), with gradients by the parameters alone."""
        loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            self, images, target, *self._tensors
        )
        return loss

    def image_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of Σ CE(target, f(x)) by the images."""
        gradient = torch.empty(images.shape)
        for part in self._parts(images, target):
            _, _, found = self._run("attack")
            gradient[part] = torch.from_numpy(found).permute(0, 3, 1, 2)[: len(gradient[part])]
        return gradient

    def loss_and_gradients(self, images: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return Σ CE(target, f(x)) and its gradients by the parameters, in their order."""
        loss = torch.zeros(())
        gradients = [torch.zeros(parameter.shape) for parameter in self._tensors]
        for _ in self._parts(images, target):
            found_loss, _, *found = self._run("training")
            loss += float(found_loss[0])
            arrays = iter(found)
            for (form, shape), gradient in zip(self._forms, gradients, strict=True):
                if form is not None:  # else the loss does not depend on it
                    gradient += torch.from_numpy(form.from_program(next(arrays), shape))
        return loss, gradients

    def _run(self, kind: Literal["training", "attack", "evaluation"]) -> list[Float32]:
        """Return a program's outputs, valid until it runs again; loads it the first time."""
        if kind not in self._loaded:
            threads = min(torch.get_num_threads(), MAX_THREADS)
            program = getattr(self._programs, kind).load_program(threads=threads)
            outputs = [cast(Float32, info.empty()) for info in program.outputs]
            self._loaded[kind] = program, outputs
        program, outputs = self._loaded[kind]
        rows = [] if kind == "evaluation" else [self._rows]
        program.execute([self._images, *rows, *self._weights], outputs)
        return outputs

    def _parts(self, images: Tensor, target: Tensor | None = None) -> Iterator[slice]:
        """Put the parameters and one micro-batch after the other where the programs read them."""
        self._read_parameters()
        size = len(self._images)
        for first in range(0, len(images), size):
            part = slice(first, first + size)
            pixels = images[part].detach().permute(0, 2, 3, 1).numpy()
            self._images[: len(pixels)] = pixels
            self._images[len(pixels) :] = 0
            if target is not None:
                self._rows[: len(pixels)] = target[part].numpy()
                self._rows[len(pixels) :] = 0  # adds nothing to loss and gradients
            yield part

    def _read_parameters(self) -> None:
        arrays = iter(self._weights)
        for (form, _), tensor in zip(self._forms, self._tensors, strict=True):
            if form is not None:
                next(arrays)[...] = form.to_program(tensor.detach().numpy())


class _CrossEntropy(torch.autograd.Function):
    """Computes gradients along with the value, as the programs do, and scales them later."""

    @staticmethod
    def forward(
        ctx: Any, native: NativeNetwork, images: Tensor, target: Tensor, *_parameters: Tensor
    ) -> Tensor:
        loss, ctx.gradients = native.loss_and_gradients(images, target)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(scale * gradient for gradient in ctx.gradients)


def image_gradient(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of Σ CE(target, f(x)) by the images, by the fastest way there is.

    A sum: the sign of one image's gradient must not depend on the batch's size.
    """
    if isinstance(model, NativeNetwork):
        return model.image_gradient(images, target)
    leaf = images.detach().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), target, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def cross_entropies(model: nn.Module, target: Tensor, *batches: Tensor) -> Sequence[Tensor]:
    """Return the mean of CE(target, f(x)) over each batch, to be differentiated by the weights."""
    if isinstance(model, NativeNetwork):
        return [model.cross_entropy(images, target) / len(images) for images in batches]
    log_p = model(torch.cat(batches)).log_softmax(dim=1)
    return [-(target * part).sum(dim=1).mean() for part in log_p.split(len(target))]
