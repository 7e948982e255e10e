"""Convolutional networks: a plain stack of convolutions, and residual ones under torchvision's names; with or without BatchNorm.

BatchNorm has its gain after the normalisation, so what comes before it has a scale only up to the norm's epsilon (marked approximate), but
a sign that the gain takes back, and a bias that the running mean takes back, exactly. A residual stream has one order and one scale of
channels for all that write to it.
"""

from collections.abc import Sequence

from weight_oracle.weights.symmetry.axes import Axis, Move, Spec
from weight_oracle.weights.symmetry.groups import Permutations, PositiveScales, Signs
from weight_oracle.weights.symmetry.moves import Translation
from weight_oracle.weights.symmetry.specs.mlp import amplitude

KERNEL = "height width"


def cnn(
    channels: Sequence[int], classes: int, kernel: int = 3, activation: str = "relu", batchnorm: bool = False, places: int = 1
) -> Spec:
    """Convolutions `conv.0`, `conv.1` … (`channels`: of the input and of each), each followed by `bn.i` (if `batchnorm`) and the
    nonlinearity; then a linear layer `fc` on the channels of `places` positions: 1 after global pooling, else the flattened image."""
    build = _Builder(kernel, classes, activation)
    build.axes += [Axis("input", channels[0]), Axis("places", places)]
    stream = "input"
    for i, width in enumerate(channels[1:]):
        out = build.channels(str(i), width)
        build.convolution(f"conv.{i}", f"bn.{i}" if batchnorm else None, stream, out, bias=True)
        stream = out
    build.tensors |= {"fc.weight": f"classes ({build.read(stream)} places)", "fc.bias": "classes"}
    return build.spec("cnn")


def resnet(widths: Sequence[int], blocks: Sequence[int], classes: int, inputs: int = 3, stem: int = 7) -> Spec:
    """torchvision's residual networks of basic blocks (ResNet-18: widths 64, 128, 256, 512, two blocks each): the blocks of a stage share
    one stream, and a stage that begins with a `downsample` has one of its own."""
    build = _Builder(3, classes, "relu")
    build.axes += [Axis("input", inputs), Axis("stem_height", stem), Axis("stem_width", stem)]
    build.axes += [Axis("point_height", 1), Axis("point_width", 1)]
    stream = build.channels("stage.0", widths[0])
    build.convolution("conv1", "bn1", "input", stream, kernel="stem_height stem_width")
    for s, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for b in range(count):
            at, before = f"layer{s + 1}.{b}.", stream
            if b == 0 and s > 0:
                stream = build.channels(f"stage.{s}", width)
                build.convolution(at + "downsample.0", at + "downsample.1", before, stream, kernel="point_height point_width")
            inner = build.channels(f"inner.{s}.{b}", width)
            build.convolution(at + "conv1", at + "bn1", before, inner)
            build.convolution(at + "conv2", at + "bn2", inner, stream)
    build.tensors |= {"fc.weight": f"classes ({build.read(stream)})", "fc.bias": "classes"}
    return build.spec("resnet")


class _Builder:
    """Collects the axes and tensors of a network, convolution by convolution."""

    def __init__(self, kernel: int, classes: int, activation: str):
        self.group = amplitude(activation)
        self.axes = [Axis("height", kernel), Axis("width", kernel), Axis("classes", classes)]
        self.tensors: dict[str, str] = {}
        self.moves: list[Move] = []

    def channels(self, name: str, width: int) -> str:
        """New channels after a nonlinearity, as they are written."""
        self.axes += [Axis(f"channels.{name}", width, Permutations(), "channels")]
        if self.group is None:
            return f"channels.{name}"
        self.axes += [Axis(f"amplitude.{name}", 1, self.group, "amplitudes", (f"channels.{name}",))]
        return f"channels.{name} amplitude.{name}"

    def read(self, stream: str) -> str:
        """Channels as they are read."""
        return stream if stream == "input" else " ".join(f"{axis}'" for axis in stream.split())

    def convolution(self, name: str, norm: str | None, source: str, target: str, kernel: str = KERNEL, bias: bool = False) -> None:
        """A convolution from the channels `source` to the channels `target`, and the BatchNorm behind it."""
        channels = target.split()[0]
        if norm is None:
            written = target
        else:
            self.axes += [Axis(f"flip.{norm}", 1, Signs(), "signs", (channels,))]
            self.axes += [Axis(f"size.{norm}", 1, PositiveScales(), "batchnorm", (channels,), exact=False)]
            written = f"{channels} flip.{norm} size.{norm}"
            self.tensors |= {f"{norm}.running_mean": f"({written})", f"{norm}.running_var": f"({channels} size.{norm}^2)"}
            self.tensors |= {f"{norm}.weight": f"({target} flip.{norm}')", f"{norm}.bias": f"({target})", f"{norm}.num_batches_tracked": ""}
            if bias:
                self.moves += [Translation("means", f"{name}.bias", unit=f"{name}.weight", also=(f"{norm}.running_mean",))]
        self.tensors[f"{name}.weight"] = f"({written}) ({self.read(source)}) {kernel}"
        if bias:
            self.tensors[f"{name}.bias"] = f"({written})"

    def spec(self, architecture: str) -> Spec:
        return Spec(architecture, {axis.name: axis for axis in self.axes}, self.tensors, tuple(self.moves))
