"""The network: its size, its start, what it takes and gives, and where it must work."""

import pytest
import torch
from unet import UNet


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(base_width=4).eval()


def test_the_default_network_has_the_papers_number_of_parameters():
    assert sum(p.numel() for p in UNet().parameters()) == 31_037_633


@pytest.mark.parametrize("kernel_size, depth", [(1, 4), (5, 1), (7, 4)])
def test_logits_are_as_large_as_the_photo(kernel_size, depth):
    network = UNet(base_width=2, depth=depth, kernel_size=kernel_size)
    assert network(torch.rand(2, 3, 48, 32)).shape == (2, 1, 48, 32)


def test_a_byte_and_its_fraction_give_the_same_logits(network):
    photo = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    assert torch.equal(network(photo), network(photo / 255))


def test_a_photo_of_the_mean_colour_enters_the_network_as_zero():
    network = UNet(base_width=2)
    network.colour_mean.copy_(torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1))
    entered = []
    network.contracting_path[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    network(network.colour_mean.expand(1, 3, 32, 32))
    assert entered[0].abs().max() == 0


@pytest.mark.parametrize("height, width, nearest", [(30, 48, "32x48"), (33, 57, "32x64"), (7, 7, "16x16")])
def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest_that_can(network, height, width, nearest):
    sentence = rf"multiples of 16, got {height}x{width} .* nearest size that works is {nearest}"
    with pytest.raises(ValueError, match=sentence):
        network(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(
    "wrong", [dict(kernel_size=4), dict(base_width=0), dict(depth=0), dict(base_width=10**9), dict(depth=2.0)]
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        UNet(**wrong)


def test_channels_last_goes_in_and_comes_through(network):
    # A plain layout inside would be right and a third slower.
    network = network.to(memory_format=torch.channels_last)
    photo = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    seen = []
    network.bottleneck.register_forward_hook(lambda module, args, output: seen.append(output))
    network(photo)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_bf16_autocast_gives_nearly_the_same_probabilities(network):
    photo = torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(photo)
    assert (low.float().sigmoid() - network(photo).sigmoid()).abs().max() < 0.05


def test_compiles_as_one_graph(network):
    # "eager" traces the whole network as the real compiler would and needs no C compiler.
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    photo = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(compiled(photo), network(photo))
