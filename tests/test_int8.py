"""The network in integers: exact sums, the logits of the float network but for rounding, and never by surprise."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import train
from carvana.int8 import Convolution, Int8UNet, is_available, join, list_activations, measure_ranges, pool
from carvana.pictures import load_image
from carvana.segmenter import Segmenter, fold_batch_norm
from extra import dice, load_network, save_weights
from red_network import draw_photo, make_red_network, need, save_weights_for
from unet import UNet

pytestmark = pytest.mark.skipif(
    not is_available(), reason="this PyTorch has no integer convolutions: it is not for x86"
)


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_of_integers_is_exact(copies, padding):
    """At the greatest values, too, whose products processors without VNNI add up in 16 bits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20, 24, 8), dtype=torch.uint8, generator=generator)
    x[:10] = 255
    levels = torch.randint(-63 * copies, 63 * copies + 1, (16, 8, 3, 3), generator=generator).float()
    levels[:4], levels[4:8], levels[8:, 0, 0, 0] = 63 * copies, -63 * copies, 63 * copies
    bias = torch.randn(16, generator=generator)
    convolution = Convolution(0.01 * levels, bias, (0.5, 7), None, padding, relu=False, copies=copies)
    found = convolution(x.repeat(1, 1, copies))
    wanted = F.conv2d(
        (x.double().permute(2, 0, 1)[None] - 7) * 0.5, 0.01 * levels.double(), bias.double(), padding=padding
    )
    torch.testing.assert_close(found.permute(2, 0, 1)[None].double(), wanted, rtol=1e-5, atol=1e-4)


def test_what_goes_out_is_rounded_and_cut_off_at_the_range():
    convolution = Convolution(torch.ones(1, 1, 1, 1), torch.zeros(1), (1.0, 0), (2.0, 10), 0, relu=False)
    assert convolution(torch.tensor([[[0], [3], [8], [255]]], dtype=torch.uint8)).flatten().tolist() == [
        10,
        12,
        14,
        138,
    ]  # 1.5 to even
    steep = Convolution(torch.full((1, 1, 1, 1), 3.0), torch.full((1,), -30.0), (1.0, 0), (1.0, 0), 0, relu=True)
    assert steep(torch.tensor([[[5], [20], [200]]], dtype=torch.uint8)).flatten().tolist() == [0, 30, 255]


def test_pooling_and_joining_are_pytorchs():
    x = torch.randint(0, 256, (6, 8, 4), dtype=torch.uint8)
    assert torch.equal(pool(x).permute(2, 0, 1)[None].float(), F.max_pool2d(x.permute(2, 0, 1)[None].float(), 2))
    up = torch.nn.ConvTranspose2d(3, 4, 2, 2, bias=False)
    below = torch.randn(3, 3, 4)
    fours = F.conv2d(below[None], up.weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None])[0].permute(1, 2, 0)
    integers = lambda values: (100 + 20 * values).clamp(0, 255).to(torch.uint8)
    for padding in (0, 1, 2):
        joined = join(x, integers(fours), 100, padding)
        pad = lambda values, zero: F.pad(values.permute(2, 0, 1).int(), [padding] * 4, value=zero)
        assert torch.equal(joined[..., :4].permute(2, 0, 1).int(), pad(x, 0))
        wanted = pad(integers(up(below[None]))[0].permute(1, 2, 0), 100)
        assert (joined[..., 4:].permute(2, 0, 1).int() - wanted).abs().max() <= 1  # a sum may be rounded the other way


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(kernel_size=5, depth=2),
        dict(depth=1, out_channels=3),
        dict(base_width=5, depth=3),
        dict(kernel_size=1),
    ],
)
def test_logits_are_those_of_the_network_but_for_rounding(settings):
    torch.manual_seed(0)
    network = UNet(**dict(base_width=8) | settings).eval().requires_grad_(False)
    network.colour_mean.uniform_(0.3, 0.7), network.colour_std.uniform_(0.2, 0.3)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            (
                layer.running_mean.normal_(),
                layer.running_var.uniform_(0.5, 2),
                layer.bias.normal_(),
                layer.weight.uniform_(0.5, 2),
            )
    network = fold_batch_norm(network)
    photos = [torch.from_numpy(draw_photo(96, 64)).permute(2, 0, 1)[None].float() / 255 for _ in range(2)]
    photos[1] = (photos[1] + 0.1 * torch.randn_like(photos[1])).clamp(0, 1)
    with torch.inference_mode():
        integers = Int8UNet(network, measure_ranges(network, photos))
        for photo in (*photos, photos[1][..., :16, :32]):
            found, wanted = integers(photo), network(photo)
            assert found.shape == wanted.shape and found.dtype == torch.float32
            # Random weights let each rounding grow through up to 18 layers; a scale that does not fit leaves 0.8 or less.
            assert np.corrcoef(found.flatten(), wanted.flatten())[0, 1] > 0.95


def test_a_training_saves_the_ranges_that_it_takes(tiny_settings):
    train.train(train.Config(**{**tiny_settings, "epochs": 1}))
    for name in ("best.safetensors", "best.pt"):
        network, description = load_network(tiny_settings["checkpoint_dir"] / name)
        assert sorted(description["ranges"]) == sorted(list_activations(network))
        assert all(low <= 0 < high for low, high in description["ranges"].values())
        assert Segmenter(tiny_settings["checkpoint_dir"] / name, "cpu", fast=True).precision == torch.uint8


def test_shipped_weights_give_nearly_the_same_mask(tmp_path):
    need("embreex", requirements="requirements-studio.txt")
    from studio import make_studio

    folder = make_studio(tmp_path, cars=1, width=240, height=160, workers=1, progress=False)
    photo = load_image(sorted((folder / "train").iterdir())[3])
    exact, integers = (Segmenter(device="cpu", precision=precision) for precision in ("float32", "int8"))
    masks = [segmenter(photo) > segmenter.threshold for segmenter in (exact, integers)]
    assert 0.05 < masks[0].mean() < 0.6 and dice(*masks) > 0.99


# ---------------------------------------------------------------------------------------------------- when it is used


@pytest.fixture
def red(tmp_path):
    """Weights of the network that takes red for car, with ranges."""
    network, path = make_red_network(), tmp_path / "red.safetensors"
    photo = torch.from_numpy(draw_photo(96, 64)).permute(2, 0, 1)[None].float() / 255
    description = load_network(save_weights_for(path, network, 96, 64, 0.4))[1]
    save_weights(path, network, {**description, "ranges": measure_ranges(network, [photo])})
    return path


def change_ranges(path, change) -> None:
    network, description = load_network(path)
    change(description)
    save_weights(path, network, json.loads(json.dumps(description)))


def test_only_fast_and_int8_use_integers(red):
    used = lambda **settings: Segmenter(red, "cpu", **settings).precision == torch.uint8
    assert used(fast=True) and used(precision="int8")
    assert not used() and not used(fast=True, precision="float32")


def test_without_ranges_fast_computes_as_before_and_int8_is_refused(red):
    change_ranges(red, lambda description: description.pop("ranges"))
    assert Segmenter(red, "cpu", fast=True).precision != torch.uint8
    with pytest.raises(ValueError, match="red.safetensors must come with the ranges of its activations for int8"):
        Segmenter(red, "cpu", precision="int8")


@pytest.mark.parametrize(
    "change",
    [
        lambda ranges: ranges.pop("bottleneck.0"),
        lambda ranges: ranges.update({"contracting_path.0.1": [0, "high"]}),
        lambda ranges: ranges.update({"contracting_path.0.1": [0, float("nan")]}),
        lambda ranges: ranges.update({"contracting_path.0.1": [0, float("inf")]}),
        lambda ranges: ranges.update({"contracting_path.0.1": [1]}),
        lambda ranges: ranges.update({"contracting_path.0.1": None}),
    ],
)
def test_ranges_that_do_not_fit_are_refused_with_the_files_name(red, change):
    change_ranges(red, lambda description: change(description["ranges"]))
    with pytest.raises(ValueError, match="red.safetensors: ranges must hold two finite numbers for each activation"):
        Segmenter(red, "cpu", precision="int8")


def test_the_mirrored_view_and_any_size_work_in_integers(red):
    exact, integers = (Segmenter(red, "cpu", precision=precision, tta=True) for precision in ("float32", "int8"))
    for width, height in ((96, 64), (64, 96), (201, 133), (1, 1), (300, 5)):
        photo = draw_photo(width, height)
        masks = [segmenter(photo) > 0.4 for segmenter in (exact, integers)]
        assert np.mean(masks[0] == masks[1]) > 0.995
