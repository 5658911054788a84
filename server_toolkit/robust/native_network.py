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
# What rounding may leave of a sum of zero: a share of the sizes of what is added, and, since p - 1
# of a probability near 1 is rounded too, a bit more.
ROUNDING_SHARE, ROUNDING = 1e-5, 5e-7


@dataclass(frozen=True)
class Programs:
    """The programs of one network, all for micro-batches of the same size.

    Where only images are differentiated, `training` is None.
    """

    attack: ProgramFile
    evaluation: ProgramFile
    training: ProgramFile | None = None

    @property
    def micro_batch(self) -> int:
        """How many images each takes at a time."""
        return self.attack.micro_batch


class NativeNetwork(nn.Module):
    """`network` on a CPU, with its parameters and its logits, and three faster ways through it.

    `cross_entropy` gives gradients by the parameters, `image_gradient` by the images, and where no
    gradients by the parameters are recorded the forward pass is a program too, which any loss on
    its logits can be differentiated through. Otherwise it is torch's. Every call reads the
    parameters anew, so they may be changed in place. Images `(N, C, H, W) float32`, targets
    `(N, classes) float32`: probabilities, or zeros for an image that does not count. Runs on as
    many threads as torch.
    """

    def __init__(self, network: Network, programs: Programs) -> None:
        super().__init__()
        self.network = network
        # Listed once: torch searches all modules each time, which took a tenth of a step.
        self._tensors = list(network.parameters())
        self._forms = [(p.form, p.shape) for p in programs.attack.parameters]
        self._programs = programs
        self._loaded: dict[str, tuple[Program, list[Float32]]] = {}
        size, spec = programs.micro_batch, network.spec
        shapes = [(size, *programs.attack.image_shape), (size, spec.classes)]
        shapes += [form.shape for form, _ in self._forms if form is not None]
        self._images, self._rows, *self._weights = (
            cast(Float32, aligned_zeros(shape)) for shape in shapes
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, classes)`."""
        if torch.is_grad_enabled():
            if self._tensors[0].requires_grad:
                return cast(Tensor, self.network(images))
            return cast(Tensor, _Logits.apply(self, images))  # type: ignore[no-untyped-call]
        return self.logits(images)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `(N, classes)` without a record for gradients."""
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


class _Logits(torch.autograd.Function):
    """Takes a loss on the logits back to the images, through the cross-entropy's program.

    By the logits z, the gradient of CE(t, z) = -Σ t log softmax(z) is (Σ t) softmax(z) - t, for any
    numbers t. So with t = -v the program gives what a loss with ∂/∂z = v gives, where Σ v = 0: that
    is every loss that stays the same when all logits rise together, as those of attacks do; torch
    takes the others back.
    """

    @staticmethod
    def forward(ctx: Any, native: NativeNetwork, images: Tensor) -> Tensor:
        ctx.native = native
        ctx.save_for_backward(images)
        return native.logits(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logits: Tensor) -> tuple[None, Tensor]:
        (images,) = ctx.saved_tensors
        allowed = ROUNDING + ROUNDING_SHARE * by_logits.abs().sum(dim=1)
        if bool((by_logits.sum(dim=1).abs() <= allowed).all()):
            return None, ctx.native.image_gradient(images, -by_logits)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.native.network(leaf), leaf, by_logits)
        return None, gradient


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
