"""The network in 8-bit integers, for prediction on a CPU: half of the time of float32 and more, nearly the same logits.

Weights and activations become integers with one scale each (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018): weights of 7 bits, a scale for each output channel, and activations of 8 bits, whose ranges
were measured on photos and stand in the file of weights. Seven bits, so that the sum of two products fits into 16 bits: processors
without VNNI would otherwise cut it off. So the sums are exact on every processor.
"""

import math
import platform
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from unet import UNet

COPIES = 2  # of the photo's three channels: the first weights are few, and each of their errors reaches everything that follows
Range = tuple[float, float]  # least and greatest value of an activation, over photos like those that will come


def is_available() -> bool:
    """Tell whether this is an x86 processor whose PyTorch has oneDNN's integer convolutions."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return (
        is_x86
        and "onednn" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
    )


class Convolution:
    """A convolution of integers, and what follows it: ReLU or nothing, and rounding to the next layer's integers or none.

    Args:
        weight: (out, in, k, k), float32.
        bias: (out,), float32.
        inputs: Scale and zero point of what comes in.
        outputs: Scale and zero point of what goes out; None for float32.
        padding: Rows and columns of zeros round what comes in.
        relu: Whether a ReLU follows.
        mean: (1, in, 1, 1), float32: what is to be subtracted from what comes in.
        copies: How often each channel comes in: its weight is the sum of so many, and finer by as much.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        inputs: tuple[float, int],
        outputs: tuple[float, int] | None,
        padding: int,
        relu: bool,
        mean: Tensor = torch.zeros(()),
        copies: int = 1,
    ):
        self.scales = (weight.abs().amax((1, 2, 3)) / (63 * copies)).clamp(min=1e-12)
        integers = (weight / self.scales[:, None, None, None]).round().to(torch.int16)
        # The mean is subtracted with the rounded weights, or their errors would be multiplied by it.
        self.bias = bias - (integers * self.scales[:, None, None, None] * mean).sum((1, 2, 3))
        self.inputs, self.outputs, self.padding = inputs, outputs or (1.0, 0), [padding, padding]
        self.zeros = torch.zeros(len(weight), dtype=torch.long)
        self.dtype, self.relu = torch.uint8 if outputs else torch.float32, "relu" if relu else "none"
        integers = torch.cat([(integers + part).div(copies, rounding_mode="floor") for part in range(copies)], 1).to(
            torch.int8
        )
        self.weight = torch.ops.onednn.qconv_prepack(
            integers, self.scales, *inputs, [1, 1], self.padding, [1, 1], 1, None
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (height, width, in), uint8."""
        x = x.permute(2, 0, 1)[None]  # channels last, as it lies in memory
        weight, bias, one = (self.weight, self.scales, self.zeros), self.bias, [1, 1]
        y = torch.ops.onednn.qconv2d_pointwise(
            x, *self.inputs, *weight, bias, one, self.padding, one, 1, *self.outputs, self.dtype, self.relu, [], ""
        )
        return y[0].permute(1, 2, 0)


class Int8UNet:
    """A U-Net whose batch norm is folded, in integers.

    Args:
        network: From `segmenter.fold_batch_norm`, float32, on the CPU.
        ranges: From `measure_ranges`.

    Raises:
        ValueError: If the ranges are not those of this network.
    """

    def __init__(self, network: UNet, ranges: dict[str, Range]):
        try:
            steps = {name: choose_scale(*map(float, ranges[name])) for name in list_activations(network)}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"ranges must hold two finite numbers for each activation of the network, got others ({error!r})."
            ) from error
        self.padding = padding = network.settings["kernel_size"] // 2

        def double_conv(
            block: nn.Module, name: str, inputs: tuple[float, int], **first: Tensor | int
        ) -> tuple[Convolution, Convolution]:
            """Make both convolutions of a block; `first` is what the first of them has of its own."""
            first = dict(weight=block[0].weight, padding=padding) | first
            return (
                Convolution(bias=block[0].bias, inputs=inputs, outputs=steps[f"{name}.0"], relu=True, **first),
                Convolution(block[3].weight, block[3].bias, steps[f"{name}.0"], steps[f"{name}.1"], padding, relu=True),
            )

        # Levels of a photo come in: colours' mean and deviation go into the first weights, and what surrounds the photo has the mean.
        self.surroundings = (255 * network.colour_mean[0, :, 0, 0]).round().to(torch.uint8)
        weight = network.contracting_path[0][0].weight / network.colour_std
        first = dict(weight=weight, padding=0, mean=network.colour_mean, copies=COPIES)
        inputs, self.contracting_path = (1 / 255, 0), []
        for level, block in enumerate(network.contracting_path):
            name = f"contracting_path.{level}"
            self.contracting_path.append(double_conv(block, name, inputs, **(first if level == 0 else {})))
            inputs = steps[f"{name}.1"]
        self.bottleneck = double_conv(network.bottleneck, "bottleneck", inputs)
        inputs = steps["bottleneck.1"]
        self.up_convolutions, self.expanding_path = [], []
        for place, (up, block) in enumerate(zip(network.up_convolutions, network.expanding_path)):
            name, level = f"expanding_path.{place}", len(network.contracting_path) - 1 - place
            skip, raised = steps[f"contracting_path.{level}.1"], steps[f"up_convolutions.{place}"]
            # Kernel and stride 2: each pixel below gives four of its own, so that it is a 1x1 convolution to four times the channels.
            weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
            self.up_convolutions.append(Convolution(weight, up.bias.repeat(4), inputs, raised, 0, relu=False))
            # What skips and what comes up have scales of their own, but a convolution takes one, here the skip's: the weights of the
            # other channels make up for the difference, and the zero point of these is subtracted as their mean.
            comes_up = torch.tensor([0.0, 1.0]).repeat_interleave(up.out_channels)[None, :, None, None]
            weight = block[0].weight * torch.where(comes_up > 0, raised[0] / skip[0], 1.0)
            self.expanding_path.append(
                double_conv(block, name, skip, weight=weight, padding=0, mean=comes_up * skip[0] * raised[1])
            )
            inputs = steps[f"{name}.1"]
        self.head = Convolution(network.head.weight, network.head.bias, inputs, None, 0, relu=False)

    def __call__(self, image: Tensor) -> Tensor:
        """Compute logits.

        Args:
            image: RGB photo (1, 3, height, width), float32 in [0, 1]; it is rounded to 255 levels.

        Returns:
            Logits (1, out_channels, height, width), float32.
        """
        height, width, p = *image.shape[-2:], self.padding
        x = self.surroundings.expand(height + 2 * p, width + 2 * p, 3).clone()
        x[p : p + height, p : p + width] = (255 * image[0].permute(1, 2, 0)).round()
        x = torch.cat([x] * COPIES, 2)
        skips = []
        for first, second in self.contracting_path:
            x = second(first(x))
            skips.append(x)
            x = pool(x)
        first, second = self.bottleneck
        x = second(first(x))
        for up, (first, second) in zip(self.up_convolutions, self.expanding_path):
            x = second(first(join(skips.pop(), up(x), up.outputs[1], p)))
        return self.head(x).permute(2, 0, 1)[None]


def pool(x: Tensor) -> Tensor:
    """Take the greatest of each 2x2 pixels of (height, width, channels): PyTorch's own pooling refuses large pictures of integers."""
    rows = torch.maximum(x[0::2], x[1::2])
    return torch.maximum(rows[:, 0::2], rows[:, 1::2])


def join(skip: Tensor, fours: Tensor, zero_point: int, padding: int) -> Tensor:
    """Put the skip's channels and those that come up side by side, with zeros all round.

    Args:
        skip: (height, width, channels), uint8, zero point 0.
        fours: (height / 2, width / 2, 4 * channels), uint8: four pixels in each.
        zero_point: What stands for zero in `fours`.
        padding: Rows and columns of zeros on each side.

    Returns:
        (height + 2 * padding, width + 2 * padding, 2 * channels), uint8.
    """
    (height, width, channels), p = skip.shape, padding
    joined = torch.empty(height + 2 * p, width + 2 * p, 2 * channels, dtype=torch.uint8)
    for edge in (joined[:p], joined[height + p :], joined[:, :p], joined[:, width + p :]):
        edge[..., :channels], edge[..., channels:] = 0, zero_point
    inside = joined[p : p + height, p : p + width]
    inside[..., :channels] = skip
    for place, pixels in enumerate(fours.chunk(4, 2)):
        inside[place // 2 :: 2, place % 2 :: 2, channels:] = pixels
    return joined


def choose_scale(low: float, high: float) -> tuple[float, int]:
    """Give scale and zero point with which 0 to 255 span a range, 0 among them.

    Raises:
        ValueError: If a number is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"range {low} to {high}")
    low, high = min(0.0, low), max(0.0, high)
    scale = max(high - low, 1e-6) / 255
    return scale, round(-low / scale)


def list_activations(network: UNet) -> dict[str, nn.Module]:
    """Name the layers whose output becomes integers: ReLUs and up-convolutions."""
    blocks = {f"contracting_path.{level}": block for level, block in enumerate(network.contracting_path)}
    blocks |= {"bottleneck": network.bottleneck}
    blocks |= {f"expanding_path.{place}": block for place, block in enumerate(network.expanding_path)}
    activations = {f"{name}.{half}": block[place] for name, block in blocks.items() for half, place in ((0, 2), (1, 5))}
    return activations | {f"up_convolutions.{place}": up for place, up in enumerate(network.up_convolutions)}


@torch.inference_mode()
def measure_ranges(network: UNet, images: Iterable[Tensor]) -> dict[str, Range]:
    """Measure least and greatest value of each activation.

    Args:
        network: In evaluation mode; batch norm may be folded or not.
        images: Photos (1, 3, height, width) each, as the network takes them, on its device.

    Returns:
        A range for each of `list_activations`.
    """
    ranges = {}

    def watch(layer: nn.Module, name: str):
        def note(layer, inputs, output: Tensor) -> None:
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = min(low, float(output.min())), max(high, float(output.max()))

        return layer.register_forward_hook(note)

    hooks = [watch(layer, name) for name, layer in list_activations(network).items()]
    try:
        for image in images:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return ranges
