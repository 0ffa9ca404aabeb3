"""From photo to probability: any size, plain or averaged with the mirrored view."""

import numpy as np
import pytest
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, measure_uncertainty
from red_network import draw_photo, is_red, make_red_network, save_random_weights, save_weights_for


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Segmenter:
    path = tmp_path_factory.mktemp("weights") / "red.safetensors"
    return Segmenter(save_weights_for(path, make_red_network(), 96, 64, 0.4), "cpu")


@pytest.mark.parametrize("size", [(64, 96), (121, 180), (140, 90), (1, 1), (7, 3000), (3000, 7), (40, 40)])
def test_probability_has_the_photos_own_size_and_finds_the_car(segmenter, size):
    probability = segmenter(draw_photo(size[1], size[0]))
    assert probability.shape == size and probability.dtype == np.float32
    assert 0 <= probability.min() and probability.max() <= 1
    if min(size) > 30:
        difference = (probability > segmenter.threshold) != is_red(draw_photo(size[1], size[0]))
        assert difference.mean() < 0.02


@pytest.mark.parametrize(
    "image, got",
    [
        (np.zeros((4, 4)), r"float64 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        ("car.jpg", r"str \(\)"),
        ([np.zeros((4, 4, 3), np.uint8)], r"list \(\)"),
    ],
)
def test_what_is_no_photo_is_refused(segmenter, image, got):
    with pytest.raises(ValueError, match=f"image must be an RGB array .* got {got}"):
        segmenter(image)


def test_photos_of_any_shape_are_seen_at_the_training_photos_area_but_upsampled_by_half_at_most(segmenter):
    assert segmenter.fit(1280, 1920) == segmenter.fit(1280, 1918) == (64, 96)
    assert segmenter.fit(1920, 1280) == (96, 64)
    assert segmenter.fit(2000, 2000) == (80, 80)
    assert segmenter.fit(10, 5000) == (1, 160)
    assert segmenter.fit(32, 48) == (48, 72)
    assert segmenter.fit(60, 90) == (64, 96)


def test_mirrored_view_is_averaged(tmp_path):
    path = save_random_weights(tmp_path / "random.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    plain, both = Segmenter(path, "cpu", precision="float32"), Segmenter(path, "cpu", tta=True, precision="float32")
    mirrored = plain.logits(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
    assert np.abs(mirrored - plain.logits(image)).max() > 1e-3  # or this test would see nothing
    np.testing.assert_allclose(both.logits(image), (plain.logits(image) + mirrored) / 2, atol=1e-4)


def test_uncertainty_is_high_only_where_the_network_is_undecided():
    assert measure_uncertainty(np.full((10, 10), 20, np.float32)) < 0.01
    assert measure_uncertainty(np.full((10, 10), -20, np.float32)) < 0.01
    hints = np.full((640, 960), -20, np.float32)
    hints[0, :3] = -1
    assert measure_uncertainty(hints) < 0.2, "a photo without a car"
    edge = np.repeat(np.float32([[9, 9, 0.5, -9]]), 4, axis=0)
    assert 5 < measure_uncertainty(edge) < 20
    assert measure_uncertainty(np.full((10, 10), 0.01, np.float32)) == pytest.approx(100 / 3, abs=0.5)


@pytest.mark.parametrize("weights, claim", [(DEFAULT_WEIGHTS, 0.99), ("street", 0.985)])
def test_shipped_weights_find_synthetic_cars_that_they_never_saw_and_do_not_warn(weights, claim):
    from carvana.studio.camera import shoot_car
    from extra import dice

    segmenter, scores = Segmenter(weights), []
    for number in range(3, 8):
        [shot] = shoot_car(seed=0, number=number, width=480, height=320, stray=1.0, views=[3])
        scores.append(dice(segmenter(shot.photo) > segmenter.threshold, shot.mask > 0))
        assert measure_uncertainty(segmenter.logits(shot.photo)) < segmenter.description.max_uncertainty
    assert np.mean(scores) > claim and min(scores) > 0.97
