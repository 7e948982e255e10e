"""Fold the gains and biases of norms into what reads them: the normal form in which the residual stream may be rotated."""

import torch
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.weights.symmetry.axes import Norm, Spec, Tensors, check

SMALLEST_GAIN = 1e-4  # that a bias may be divided by, relative to the largest gain


def fold_norms(spec: Spec, tensors: Tensors) -> Tensors:
    """The same function with every gain 1 and every bias 0, as `spec.folded` wants it; the tensors may have batch axes in front.

    A bias whose readers have no bias to take it (GPT-2's ln_f, before an unembedding) stays behind as bias / gain. Raises UserError for a
    gain too near 0 for that.
    """
    check(spec, tensors)
    for norm in spec.norms:
        if small_gains(norm, tensors).any():
            raise UserError(f"a gain of {norm.gain} is too near 0 to be folded", hint="leave out norms, readers and rotation")
    return fold_unchecked(spec, tensors)


def small_gains(norm: Norm, tensors: Tensors, smallest: float = SMALLEST_GAIN) -> Tensor:
    """[*batch]: whether the norm's bias has to be divided by a gain that is too near 0."""
    gain = tensors[norm.gain]
    if norm.bias is None or all(bias is not None for _, bias in norm.readers):
        return torch.zeros(gain.shape[:-1], dtype=torch.bool, device=gain.device)
    return (gain.abs() < smallest * gain.abs().amax(-1, keepdim=True).clamp(min=1e-30)).any(-1)


def fold_unchecked(spec: Spec, tensors: Tensors) -> Tensors:
    """`fold_norms` without its checks: where a gain is 0, what comes out is not finite."""
    out = dict(tensors)
    for norm in spec.norms:
        gain = tensors[norm.gain]
        bias = None if norm.bias is None else tensors[norm.bias]
        stays = False
        for name, reader_bias in norm.readers:
            axis = spec.place(name, norm.axis)
            weight = out[name].movedim(axis, -1)
            if bias is not None and reader_bias is not None:
                out[reader_bias] = out[reader_bias] + (weight @ bias[..., None])[..., 0]
            stays |= reader_bias is None
            out[name] = (weight * gain[..., None, :]).movedim(-1, axis).contiguous()
        out[norm.gain] = torch.ones_like(gain)
        if bias is not None and norm.bias is not None:
            out[norm.bias] = bias / gain if stays else torch.zeros_like(bias)
    return out
