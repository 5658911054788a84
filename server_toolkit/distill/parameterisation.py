"""What is learned in place of pixels: the numbers that an image is made from.

A parameterisation maps parameters to pixels in [0, 1] and a gradient with respect to pixels back
to one with respect to parameters; `match_gradient` itself only ever sees pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

SATURATED = 0.01  # pixels nearer to 0 or 1 start here: the logistic function never reaches them


class Parameterisation(ABC):
    """Images `(N, C, H, W)` in [0, 1] as a function of parameters, whose first axis is N too."""

    @abstractmethod
    def initial(self, images: Tensor) -> Tensor:
        """Return parameters whose pixels are `images`, or as near as this parameterisation gets."""

    @abstractmethod
    def pixels(self, parameters: Tensor) -> Tensor:
        """Return the images in [0, 1], differentiable in `parameters`."""

    def project_(self, parameters: Tensor) -> None:  # noqa: B027 - nothing to do for most
        """Bring parameters that an update took outside of their range back into it, in place."""

    def pull_back(self, parameters: Tensor, pixel_gradient: Tensor) -> Tensor:
        """Return the vector-Jacobian product: the gradient with respect to `parameters`."""
        leaf = parameters.detach().requires_grad_()
        with torch.enable_grad():
            images = self.pixels(leaf)
        (gradient,) = torch.autograd.grad(images, leaf, pixel_gradient)
        return gradient


class Pixels(Parameterisation):
    """Every pixel a parameter of its own, in [0, 1]."""

    def initial(self, images: Tensor) -> Tensor:
        """Return a copy of the images."""
        return images.clone()

    def pixels(self, parameters: Tensor) -> Tensor:
        """Return the parameters, clipped to [0, 1]."""
        return parameters.clamp(0, 1)

    def project_(self, parameters: Tensor) -> None:
        """Clip to [0, 1]: a parameter outside would have no gradient to come back by."""
        parameters.clamp_(0, 1)


class LowResolution(Parameterisation):
    """Images of 1/`factor` of the side, enlarged bilinearly (as IDC, Kim et al. 2022, does).

    Fewer numbers to learn, and no detail finer than `factor` pixels. A side that `factor` does not
    divide is rounded up. Raises `ValueError` for a factor below 2.
    """

    def __init__(self, *, image_size: int, factor: int = 2) -> None:
        if factor < 2:
            raise ValueError(f"factor is {factor}; it must be at least 2")
        self._side, self._factor = image_size, factor

    def initial(self, images: Tensor) -> Tensor:
        """Return the mean of every square of `factor` pixels."""
        return avg_pool2d(images, self._factor, ceil_mode=True)

    def pixels(self, parameters: Tensor) -> Tensor:
        """Return `(N, C, H, W)`: the clipped parameters, enlarged."""
        return interpolate(parameters.clamp(0, 1), size=(self._side, self._side), mode="bilinear")

    def project_(self, parameters: Tensor) -> None:
        """Clip to [0, 1]."""
        parameters.clamp_(0, 1)


class Fourier(Parameterisation):
    """Scaled Fourier coefficients of decorrelated colours (Olah, Mordvintsev, Schubert 2017).

    The parameters `(N, C, H, W // 2 + 1, 2)` are real and imaginary parts of the spectrum, divided
    by the 1/f amplitude of natural images: equal steps on all of them move an image as natural
    images differ. Three channels are mixed from axes along which natural colours do not correlate,
    in proportion to their deviations; others are left apart. The logistic function maps to [0, 1].
    """

    # Ohta, Kanade, Sakai 1980: intensity, red against blue, green against both; columns of unit
    # length, times the deviations along them relative to the first.
    AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 2.0, -1.0))
    DEVIATIONS = (1.0, 0.27, 0.125)
    LOGIT_DEVIATION = 1.25  # pixels then deviate by 1/4

    def __init__(self, *, image_size: int, channels: int) -> None:
        side = image_size
        rows = torch.fft.fftfreq(side, dtype=torch.float64)[:, None]
        columns = torch.fft.rfftfreq(side, dtype=torch.float64)[None, :]
        frequency = (rows**2 + columns**2).sqrt().clamp(min=1 / side)
        amplitude = 1 / frequency
        # Random parameters of deviation 1 shall give what photographs have. All columns but the
        # first (and the last of an even side) stand for two; a number has a real and an imaginary
        # part.
        twice = torch.full((side // 2 + 1,), 2.0, dtype=torch.float64)
        twice[0] = 1
        twice[-1] = 1 if side % 2 == 0 else 2
        variance = 2 * (amplitude.square() * twice).sum() / side**2
        self._amplitude = (self.LOGIT_DEVIATION * amplitude / variance.sqrt())[..., None]
        self._side = side
        self._mix = torch.eye(channels, dtype=torch.float64)
        if channels == 3:
            axes = torch.tensor(self.AXES, dtype=torch.float64)
            axes = axes / axes.norm(dim=1, keepdim=True) * torch.tensor(self.DEVIATIONS)[:, None]
            self._mix = axes.T * 3**0.5  # an intensity of deviation 1 gives channels of deviation 1

    def initial(self, images: Tensor) -> Tensor:
        """Return the parameters of `images`, those beyond `SATURATED` moved to it."""
        logits = images.clamp(SATURATED, 1 - SATURATED).logit()
        unmix = torch.linalg.inv(self._mix).to(images)
        spectrum = torch.fft.rfft2(torch.einsum("kc,nchw->nkhw", unmix, logits), norm="ortho")
        parameters: Tensor = torch.view_as_real(spectrum) / self._amplitude.to(images)
        return parameters

    def pixels(self, parameters: Tensor) -> Tensor:
        """Return `(N, C, H, W)` strictly between 0 and 1."""
        spectrum = torch.view_as_complex(parameters * self._amplitude.to(parameters))
        axes = torch.fft.irfft2(spectrum, s=(self._side, self._side), norm="ortho")
        logits: Tensor = torch.einsum("ck,nkhw->nchw", self._mix.to(parameters), axes)
        return logits.sigmoid()
