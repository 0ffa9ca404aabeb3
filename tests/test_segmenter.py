"""From photo to probability: any size, whole or coarse-to-fine, plain or averaged with the mirrored view."""

import numpy as np
import pytest
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, measure_uncertainty
from red_network import GREEN, RED, draw_photo, is_red, make_red_network, save_random_weights, save_weights_for


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


@pytest.fixture
def coarse_to_fine(tmp_path, monkeypatch):
    """A coarse-to-fine segmenter for photos of 480x320 that lists the sizes at which its network ran, and lets a test
    change the coarse pass's logits."""
    weights = save_weights_for(tmp_path / "red.safetensors", make_red_network(), 480, 320, 0.4)
    segmenter = Segmenter(weights, "cpu", fast=True)
    run, segmenter.runs, segmenter.change = segmenter.run_network, [], lambda logits: None

    def run_network(small):
        logits = run(small)
        if not segmenter.runs:
            segmenter.change(logits)
        segmenter.runs.append(small.shape[:2])
        return logits

    monkeypatch.setattr(segmenter, "run_network", run_network)
    return segmenter


def whole_mask(segmenter: Segmenter, photo: np.ndarray) -> np.ndarray:
    segmenter.fast = False
    return segmenter(photo) > segmenter.threshold


def test_coarse_to_fine_finds_the_car_then_segments_its_box_alone(coarse_to_fine):
    photo = draw_photo(960, 640)
    mask = coarse_to_fine(photo) > coarse_to_fine.threshold
    assert coarse_to_fine.runs == [(107, 160), (256, 352)]
    assert np.array_equal(mask, whole_mask(coarse_to_fine, photo))


def test_coarse_to_fine_segments_the_whole_photo_if_it_finds_no_car(coarse_to_fine):
    assert not (coarse_to_fine(np.full((640, 960, 3), GREEN, np.uint8)) > coarse_to_fine.threshold).any()
    assert coarse_to_fine.runs == [(107, 160), (320, 480)]


def test_coarse_to_fine_segments_the_whole_photo_if_what_it_found_is_no_car(coarse_to_fine):
    def take_the_corner_for_the_car(logits):
        logits[:] = -9
        logits[:5, :5] = 9

    photo, coarse_to_fine.change = draw_photo(960, 640), take_the_corner_for_the_car
    mask = coarse_to_fine(photo) > coarse_to_fine.threshold
    assert [coarse_to_fine.runs[0], coarse_to_fine.runs[-1]] == [(107, 160), (320, 480)]
    assert np.array_equal(mask, whole_mask(coarse_to_fine, photo)) and mask.any()


def test_coarse_to_fine_passes_over_specks_of_which_the_coarse_pass_is_not_sure(coarse_to_fine):
    def add_specks(logits):
        logits[2:5, 2:9] = logits[-3:, -20:] = 1.5

    coarse_to_fine.change = add_specks
    mask = coarse_to_fine(draw_photo(960, 640)) > coarse_to_fine.threshold
    assert coarse_to_fine.runs == [(107, 160), (256, 352)] and mask.any()


def test_coarse_to_fine_finds_two_cars(coarse_to_fine):
    photo = draw_photo(960, 640)
    photo[100:160, 20:120] = RED
    mask = coarse_to_fine(photo) > coarse_to_fine.threshold
    assert len(coarse_to_fine.runs) == 2 and mask[130, 70]
    assert np.array_equal(mask, whole_mask(coarse_to_fine, photo))


@pytest.mark.parametrize("turns", range(4))
def test_coarse_to_fine_grows_its_box_where_the_box_cuts_through_the_car(coarse_to_fine, turns):
    photo = draw_photo(960, 640)
    photo[:320, 480:482] = RED  # an aerial, too thin for the coarse pass
    photo = np.ascontiguousarray(np.rot90(photo, turns))
    mask = coarse_to_fine(photo) > coarse_to_fine.threshold
    _, box, further = coarse_to_fine.runs
    assert further[turns % 2] > box[turns % 2] and further[1 - turns % 2] == box[1 - turns % 2]
    assert np.rot90(mask, -turns)[10, 480]
    assert np.array_equal(mask, whole_mask(coarse_to_fine, photo))


def test_coarse_to_fine_is_sure_of_the_background_outside_the_box(coarse_to_fine):
    """The coarse pass cannot tell: its uncertainty once made warnings, and a low threshold made car of it."""
    photo = draw_photo(960, 640, background=(200, 101, 30))  # red enough for a probability of 0.4
    probability = coarse_to_fine(photo)
    assert len(coarse_to_fine.runs) == 2
    assert 0.3 < probability[320, 340 - 180] < 0.5  # beside the car, within the box
    assert probability[:20].max() < 0.01 and probability[:, :20].max() < 0.01


def test_coarse_to_fine_keeps_a_car_that_leaves_the_photo(coarse_to_fine):
    photo = np.ascontiguousarray(draw_photo(960, 640)[200:, 300:])
    mask = coarse_to_fine(photo) > coarse_to_fine.threshold
    assert len(coarse_to_fine.runs) == 2
    assert np.array_equal(mask, whole_mask(coarse_to_fine, photo))


def test_uncertainty_is_high_only_where_the_network_is_undecided():
    assert measure_uncertainty(np.full((10, 10), 20, np.float32)) < 0.01
    assert measure_uncertainty(np.full((10, 10), -20, np.float32)) < 0.01
    assert measure_uncertainty(np.zeros((10, 10), np.float32)) == pytest.approx(100 / 50**0.5)


@pytest.mark.parametrize("weights", ["carvana-unet", "street"])
def test_shipped_weights_find_synthetic_cars_that_they_never_saw_and_do_not_warn(weights):
    from carvana.studio.camera import shoot_car
    from extra import dice

    segmenter = Segmenter(DEFAULT_WEIGHTS if weights == "carvana-unet" else weights)
    for number in (3, 4):
        [shot] = shoot_car(seed=0, number=number, width=480, height=320, stray=1.0, views=[3])
        logits = segmenter.logits(shot.photo)
        assert dice(segmenter(shot.photo) > segmenter.threshold, shot.mask > 0) > 0.97
        assert measure_uncertainty(logits) < segmenter.description.uncertainty_limit
