"""A file of weights, which says how it is to be used, and a live network in the place of one."""

import numpy as np
import pytest
import torch
from carvana.segmenter import Segmenter
from carvana.weights import Description, load_network, read_tensors, save_weights, write_tensors
from unet import UNet


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(base_width=4)


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "car.safetensors"
    save_weights(path, network, Description(48, 32, network.settings, 0.4, trained=dict(epochs=3)))
    return path


def change_description(path, **values) -> None:
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, description=header["description"] | values)


def test_a_network_is_rebuilt_from_its_file_alone(network, saved):
    loaded, description = load_network(saved)
    assert description == Description(48, 32, network.settings, 0.4, trained=dict(epochs=3))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)  # 16-bit floats


def test_what_an_earlier_file_says_besides_is_left_out(saved):
    change_description(saved, ranges={"photo": [0, 1]})
    assert load_network(saved)[1].threshold == 0.4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(network=dict(base_width=10**9)), "base_width must be"),
        (dict(network=dict(base_width=5)), "must have the shape"),
        (dict(network=dict(surprise=1)), "surprise"),
        (dict(network=None), "network must be a valid dictionary"),
        (dict(image_width=47), "multiples of 16"),
        (dict(image_width="48"), "image_width must be a valid integer, got '48'"),
        (dict(threshold=1.5), "threshold must be between 0 and 1"),
        (dict(threshold=None), "threshold must be a valid number"),
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence_that_names_the_file(saved, values, message):
    change_description(saved, **values)
    with pytest.raises(ValueError, match=message) as error:
        load_network(saved)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0, 0.05, 0.5, 0.99])
def test_a_file_cut_short_or_with_a_flipped_bit_is_named(saved, place):
    content = bytearray(saved.read_bytes())
    where = int(place * len(content))
    for damaged in (content[:where], content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]):
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match="car.safetensors is damaged"):
            load_network(saved)


def test_weights_that_are_not_finite_are_refused(network, saved):
    network.head.bias.data.fill_(torch.nan)
    save_weights(saved, network, Description(48, 32, network.settings))
    with pytest.raises(ValueError, match="head.bias must hold finite numbers"):
        load_network(saved)


def test_a_live_network_segments_like_its_file_and_stays_as_it_is(network, saved):
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    live, description = load_network(saved)
    live.train()
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    segmenter = Segmenter(live, "cpu", precision="float32", description=description)
    np.testing.assert_array_equal(segmenter(image), Segmenter(saved, "cpu", precision="float32")(image))
    assert live.training and all(torch.equal(before[name], tensor) for name, tensor in live.state_dict().items())
