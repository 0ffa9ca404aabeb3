"""Metrics solved in the head, the score card, pictures, weights that are shared."""

import json

import extra
import numpy as np
import pytest
import torch
from PIL import Image
from unet import UNet

import data


def boxes(*rows):
    """A mask (8, 8) with these rows True."""
    mask = np.zeros((8, 8), bool)
    mask[list(rows)] = True
    return mask


def test_dice_and_accuracy_of_masks_solved_in_the_head():
    truth, prediction = boxes(0, 1, 2, 3), boxes(2, 3, 4, 5)
    assert extra.dice(prediction, truth) == 0.5
    assert extra.pixel_accuracy(prediction, truth) == 0.5
    assert extra.dice(truth, truth) == 1
    assert extra.dice(boxes(0), boxes(1)) == 0


def test_dice_of_two_empty_masks_is_1_and_of_one_empty_mask_0():
    assert extra.dice(boxes(), boxes()) == 1
    assert extra.dice(boxes(), boxes(1)) == extra.dice(boxes(1), boxes()) == 0


def test_edge_dice_sees_only_the_band_round_the_true_edge():
    truth = np.zeros((60, 60), bool)
    truth[20:40, 20:40] = True
    far, near = truth.copy(), truth.copy()
    far[0:5, 0:5] = True  # 15 pixels from the edge
    near[15:20, 20:40] = True
    assert extra.edge_dice(far, truth) == 1
    assert extra.edge_dice(near, truth) < 0.9


def test_a_car_cut_off_by_the_frame_has_no_edge_there():
    truth = np.zeros((40, 40), bool)
    truth[:, 20:] = True
    wrong_at_border = truth.copy()
    wrong_at_border[:3, 35:] = False
    assert extra.edge_dice(wrong_at_border, truth) == 1


def test_dice_by_threshold_equals_dice_at_each_threshold():
    logits = np.random.default_rng(0).normal(0, 2, (40, 50)).astype(np.float32)
    mask = logits + np.random.default_rng(1).normal(0, 1, (40, 50)) > 0
    expected = [extra.dice(logits > threshold, mask) for threshold in extra.THRESHOLD_LOGITS]
    assert np.allclose(extra.dice_by_threshold(logits, mask), expected)


def test_the_interval_draws_cars_not_photos():
    # Sixteen photos that agree within each of two cars are two observations, not 32.
    values, cars = [0.9] * 16 + [1.0] * 16, ["a"] * 16 + ["b"] * 16
    low, high = extra.bootstrap_interval(values, cars)
    assert (low, high) == (pytest.approx(0.9), pytest.approx(1.0))


@pytest.fixture
def cache(tiny_set, tmp_path):
    pairs = data.require_pairs(tiny_set / "train", tiny_set / "train_masks")
    return data.build_cache(pairs, 48, 32, tmp_path / "cache", quiet=True)


def true_logits(cache, row):
    return (cache.coverage[row] / np.float32(255) - 0.5) * 20


def test_the_score_card_of_perfect_logits_reaches_the_ceiling(cache):
    mean_mask = (cache.coverage / np.float32(255)).mean(axis=0)
    rows = extra.score_images(((row, true_logits(cache, row)) for row in range(12)), cache, mean_mask)
    card = extra.summarise(rows)
    assert card["dice"] == pytest.approx(card["ceiling"], abs=1e-3) and card["dice"] > 0.97
    assert card["black_dice"] == 0 and 0.5 < card["mean_mask_dice"] < card["dice"]
    assert (card["n_images"], card["n_cars"]) == (12, 3)
    assert list(card["dice_per_view"]) == ["01", "02", "03", "04"]
    assert [row["name"] for row in rows] == sorted(pair.name for pair in cache.pairs)
    assert json.loads(json.dumps(card)) == card, "plain values only"


def test_scores_are_taken_at_the_photos_own_size(cache):
    # One pixel at training size is four at the photo's own: a hard mask at training size could not score this high.
    card = extra.summarise(extra.score_images([(0, true_logits(cache, 0))], cache, np.zeros((32, 48), np.float32)))
    hard = np.where(cache.coverage[0] > 127, 10, -10).astype(np.float32)
    hard_card = extra.summarise(extra.score_images([(0, hard)], cache, np.zeros((32, 48), np.float32)))
    assert card["dice"] > hard_card["dice"]


def test_predictions_that_are_all_background_are_pointed_out(cache):
    rows = extra.score_images([(0, np.full((32, 48), -9, np.float32))], cache, np.zeros((32, 48), np.float32))
    assert "warning: the predictions are all background" in extra.format_score_card(extra.summarise(rows))


def test_a_changed_photo_stops_the_score(tiny_set, tmp_path):
    import shutil

    shutil.copytree(tiny_set, tmp_path / "set")
    pairs = data.require_pairs(tmp_path / "set/train", tmp_path / "set/train_masks")
    cache = data.build_cache(pairs, 48, 32, tmp_path / "cache", quiet=True)
    shutil.copy(pairs[1].image_path, pairs[0].image_path)
    with pytest.raises(RuntimeError, match="changed since training began"):
        extra.score_images([(0, np.zeros((32, 48), np.float32))], cache, np.zeros((32, 48), np.float32))


def test_errors_are_painted_red_for_false_car_and_blue_for_missed_car():
    truth, prediction = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[:10], prediction[30:] = True, True
    picture = extra.draw_errors(np.full((20, 20, 3), 128, np.uint8), truth, prediction)
    assert tuple(picture[18, 5]) == extra.FALSE_CAR and tuple(picture[2, 5]) == extra.MISSED_CAR
    assert np.ptp(picture[10, 5]) == 0, "what is right stays grey"


def test_prediction_pictures_have_a_row_for_each_photo(cache, tmp_path):
    picture = extra.draw_predictions([(row, true_logits(cache, row)) for row in (0, 5)], cache)
    extra.save_picture(tmp_path / "p.png", picture)
    with Image.open(tmp_path / "p.png") as saved:
        assert saved.width == 4 * (48 + extra.MARGIN) + extra.MARGIN and saved.height > 2 * 32
    assert extra.draw_views([(row, true_logits(cache, row)) for row in range(4)], cache).width > 4 * 320


@pytest.fixture
def description():
    return dict(image_width=48, image_height=32, threshold=0.5, network=UNet(base_width=4).settings, trained={})


def test_shared_weights_rebuild_the_network_from_the_file_alone(tmp_path, description):
    torch.manual_seed(0)
    network = UNet(base_width=4).eval()
    extra.save_weights(tmp_path / "w.safetensors", network, description)
    loaded, read = extra.load_network(tmp_path / "w.safetensors")
    assert read == description
    photo = torch.rand(1, 3, 32, 48)
    assert (loaded(photo).sigmoid() - network(photo).sigmoid()).abs().max() < 0.01
    assert (tmp_path / "w.safetensors").stat().st_size < 3 * sum(p.numel() for p in network.parameters())


def test_a_network_that_does_not_fit_its_description_is_refused(tmp_path, description):
    description["network"] = UNet(base_width=2).settings
    extra.save_weights(tmp_path / "w.safetensors", UNet(base_width=4), description)
    with pytest.raises(ValueError, match="w.safetensors does not describe a U-Net of this project"):
        extra.load_network(tmp_path / "w.safetensors")


def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_1(capsys):
    def fail(args):
        raise ValueError("size must be positive, got -1.")

    with pytest.raises(SystemExit, match="1"):
        extra.run_command(fail, [])
    assert capsys.readouterr().err == "error: size must be positive, got -1.\n"
    with pytest.raises(ValueError):
        extra.run_command(fail, ["--debug"])
