"""The network: a U-Net with padded convolutions and batch norm.

Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015. Two
changes: convolutions are padded, so that the logits are as large as the photo, and batch norm (Ioffe and Szegedy, 2015)
follows each convolution.
"""

import torch
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Apply (convolution, batch norm, ReLU) twice; height and width stay as they are."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        # No bias: the batch norm that follows would subtract it again.
        conv = dict(kernel_size=kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, **conv),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, **conv),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """A network that returns for each pixel of a photo the logit of belonging to a car.

    Args:
        in_channels: Channels of the photo, 3 for RGB.
        out_channels: Logits per pixel, 1 for car against background.
        base_width: Channels after the first convolution; they double at each step down. The paper has 64.
        depth: Steps down, each halving height and width. The paper has 4.
        kernel_size: Side of the square convolutions, an odd number. The paper has 3.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sum(p.numel() for p in UNet().parameters())
        31037633
        >>> UNet(base_width=8)(torch.zeros(2, 3, 32, 48, dtype=torch.uint8)).shape
        torch.Size([2, 1, 32, 48])
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, base_width: int = 64, depth: int = 4, kernel_size: int = 3
    ):
        super().__init__()
        settings = dict(in_channels=in_channels, out_channels=out_channels, base_width=base_width)
        self.settings = settings | dict(depth=depth, kernel_size=kernel_size)
        check_settings(**self.settings)
        widths = [base_width * 2**level for level in range(depth + 1)]
        # Colour statistics of the training photos, in [0, 1]: part of the network, so a file of weights is complete.
        self.register_buffer("colour_mean", torch.full((1, in_channels, 1, 1), 0.5))
        self.register_buffer("colour_std", torch.full((1, in_channels, 1, 1), 0.25))
        steps_down, narrow_again = zip([in_channels, *widths], widths[:-1]), widths[-2::-1]
        self.contracting_path = nn.ModuleList(DoubleConv(narrow, wide, kernel_size) for narrow, wide in steps_down)
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DoubleConv(widths[-2], widths[-1], kernel_size)
        self.up_convolutions = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in narrow_again
        )
        self.expanding_path = nn.ModuleList(DoubleConv(2 * width, width, kernel_size) for width in narrow_again)
        self.head = nn.Conv2d(base_width, out_channels, kernel_size=1)
        self.apply(init_he_normal)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits.

        Args:
            image: RGB photos (batch, in_channels, height, width), uint8 in [0, 255] or floating point in [0, 1].

        Returns:
            Logits (batch, out_channels, height, width); a probability is their sigmoid.

        Raises:
            ValueError: If height or width is not a multiple of 2**depth.
        """
        check_image_size(image.shape[-2], image.shape[-1], 2 ** len(self.contracting_path))
        if not image.is_floating_point():
            image = image.to(self.colour_mean.dtype) / 255
        x = (image - self.colour_mean) / self.colour_std
        # Subtracting the mean may choose a plain layout; the convolutions keep the one that they are given.
        if image.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for double_conv in self.contracting_path:
            x = double_conv(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for up_convolution, double_conv in zip(self.up_convolutions, self.expanding_path):
            x = double_conv(torch.cat([skips.pop(), up_convolution(x)], dim=1))
        return self.head(x)


def init_he_normal(layer: nn.Module) -> None:
    """Draw a convolution's weights from a normal distribution of variance 2 / N, N the inputs of one output.

    Source: section 3 of the U-Net paper, after He et al., 2015.
    """
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        # An up-convolution of kernel and stride 2 lets one input pixel reach each output pixel.
        n_pixels = 1 if isinstance(layer, nn.ConvTranspose2d) else layer.kernel_size[0] * layer.kernel_size[1]
        nn.init.normal_(layer.weight, std=(2 / (layer.in_channels * n_pixels)) ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_settings(**settings: int) -> None:
    """Raise a ValueError for settings of a network that cannot be built or that no machine could hold."""
    limits = dict(in_channels=64, out_channels=256, base_width=512, depth=7, kernel_size=31)
    for name, value in settings.items():
        if type(value) is not int or not 1 <= value <= limits[name]:
            raise ValueError(f"{name} must be a whole number from 1 to {limits[name]}, got {value!r}.")
        if name == "kernel_size" and value % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {value}: others cannot be padded evenly. Use {value + 1}.")


def check_image_size(height: int, width: int, divisor: int) -> None:
    """Raise a ValueError, naming the nearest size that works, unless `divisor` divides height and width."""
    if height % divisor or width % divisor or min(height, width) == 0:
        nearest = [max(divisor, (side + divisor // 2) // divisor * divisor) for side in (height, width)]
        raise ValueError(
            f"height and width must be multiples of {divisor}, got {height}x{width} (height x width). "
            f"The nearest size that works is {nearest[0]}x{nearest[1]}."
        )
