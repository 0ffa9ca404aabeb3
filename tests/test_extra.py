"""Metrics solved in the head, the score card, pictures."""

import json

import extra
import numpy as np
import pytest
from carvana import drawing, metrics
from carvana.pictures import area_average, upsample
from carvana.segmenter import to_logit

import data


def boxes(*rows):
    """A mask (8, 8) with these rows True."""
    mask = np.zeros((8, 8), bool)
    mask[list(rows)] = True
    return mask


def test_dice_and_accuracy_of_masks_solved_in_the_head():
    truth, prediction = boxes(0, 1, 2, 3), boxes(2, 3, 4, 5)
    assert metrics.dice(prediction, truth) == metrics.pixel_accuracy(prediction, truth) == 0.5
    assert metrics.dice(truth, truth) == metrics.dice(boxes(), boxes()) == 1
    assert metrics.dice(boxes(0), boxes(1)) == metrics.dice(boxes(), boxes(1)) == metrics.dice(boxes(1), boxes()) == 0


def test_the_edge_is_a_band_round_the_true_edge_but_not_along_the_frame():
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:] = True  # a car cut off by the frame on the right
    edge = metrics.find_edge(mask)
    assert edge[15:25, 30:].all() and edge[30, 15:25].all()
    assert not edge[:15].any() and not edge[25:35, 25:].any()


def test_dice_by_threshold_equals_dice_at_each_threshold():
    logits = np.random.default_rng(0).normal(0, 2, (40, 50)).astype(np.float32)
    mask = logits + np.random.default_rng(1).normal(0, 1, (40, 50)) > 0
    levels = np.linspace(-2, 2, 9, dtype=np.float32)
    logits[:9, 0] = levels  # exactly at a level is not above it
    expected = [metrics.dice(logits > level, mask) for level in levels]
    np.testing.assert_allclose(metrics.dice_by_threshold(logits, mask, levels), expected)


def test_the_interval_draws_cars_not_photos():
    # Sixteen photos that agree within each of two cars are two observations, not 32.
    values, cars = [0.9] * 16 + [1.0] * 16, ["a"] * 16 + ["b"] * 16
    low, high = metrics.bootstrap_interval(values, cars)
    assert (low, high) == (pytest.approx(0.9), pytest.approx(1.0))


def scores(*dice_of_cars: float) -> list[dict]:
    """Rows of scores, one photo a car."""
    zeros = dict.fromkeys("accuracy edge_dice upper_bound mean_mask_dice mean_mask_accuracy black_dice".split(), 0.0)
    common = dict(view=1, **zeros, black_accuracy=0.8, car_fraction=0.2)
    return [dict(name=f"{n}", car=f"car {n}", dice=value, **common) for n, value in enumerate(dice_of_cars)]


def test_the_score_card_has_an_interval_from_five_cars_on():
    card = metrics.summarise(scores(0.9, 0.8, 0.9, 0.8, 0.85), 0.5)
    assert card["dice"] == pytest.approx(0.85) and card["dice_low"] < 0.85 < card["dice_high"]
    assert "95 % CI" in metrics.format_score_card(card) and "5 photos of 5 cars" in metrics.format_score_card(card)
    few = metrics.summarise(scores(0.9, 0.8), 0.5)
    assert few["dice_low"] is None and "too few cars for an interval" in metrics.format_score_card(few)
    assert "1 photo of 1 car\n" in metrics.format_score_card(metrics.summarise(scores(0.9), 0.5))
    assert json.loads(json.dumps(card)) == card, "plain values only"


def test_predictions_that_are_all_background_are_pointed_out_unless_there_is_no_car():
    blind = scores(0.0)[0] | dict(car_fraction=0.0)
    assert "warning: the predictions are all background" in metrics.format_score_card(metrics.summarise([blind], 0.5))
    right = blind | dict(dice=1.0, black_accuracy=1.0)
    assert "warning" not in metrics.format_score_card(metrics.summarise([right], 0.5))


@pytest.fixture
def cache(pairs, tmp_path):
    return data.build_cache(pairs, 48, 32, tmp_path / "cache", quiet=True)


class KnowsTheTruth:
    """In the place of a Segmenter: the true coverage at training size, upsampled."""

    threshold = 0.5

    def __init__(self, cache):
        self.rows, self.cache = {pair.image_path: row for row, pair in enumerate(cache.pairs)}, cache

    def fit(self, height: int, width: int) -> tuple[int, int]:
        return 32, 48

    def read(self, path) -> np.ndarray:
        mask, _ = self.cache.load_mask(self.rows[path])
        coverage = area_average(mask.astype(np.float32), 48, 32)
        return upsample(20 * (coverage - 0.5), *mask.shape)


def test_a_perfect_network_reaches_the_upper_bound(cache):
    baseline = cache.coverage[:].mean(axis=0, dtype=np.float32) / 255
    rows = extra.score_photos(KnowsTheTruth(cache), cache, range(12), 0.5, baseline)
    card = metrics.summarise(rows, 0.5)
    assert card["dice"] == pytest.approx(card["upper_bound"], abs=1e-3) and card["dice"] > 0.97
    assert card["black_dice"] == 0 and 0.5 < card["mean_mask_dice"] < card["dice"]
    assert [row["name"] for row in rows] == [pair.name for pair in cache.pairs]
    assert list(card["dice_per_view"]) == ["01", "02", "03", "04"]


def test_the_threshold_is_the_one_with_the_best_dice(cache, monkeypatch):
    segmenter = KnowsTheTruth(cache)
    read = segmenter.read
    monkeypatch.setattr(segmenter, "read", lambda path: read(path) + to_logit(0.7))
    chosen = extra.choose_threshold(segmenter, cache, range(12))
    masks = [cache.load_mask(row)[0] for row in range(12)]

    def mean_dice(threshold: float) -> float:
        predictions = [segmenter.read(pair.image_path) > to_logit(threshold) for pair in cache.pairs]
        return np.mean([metrics.dice(*pair) for pair in zip(predictions, masks)])

    assert mean_dice(chosen) > mean_dice(0.4) and mean_dice(chosen) >= mean_dice(chosen + 0.05)


def test_unknown_pixels_do_not_count(cache, monkeypatch):
    def load_mask(self, row):
        mask = loaded(self, row)[0]
        known = np.ones_like(mask)
        known[:, 40:] = False
        return mask, known

    segmenter = KnowsTheTruth(cache)
    loaded, read = data.Cache.load_mask, segmenter.read
    monkeypatch.setattr(data.Cache, "load_mask", load_mask)

    def read_wrong(path):
        logits = read(path)
        logits[:, 40:] *= -1
        return logits

    right = extra.score_photos(segmenter, cache, [0], 0.5, np.zeros((32, 48), np.float32))
    monkeypatch.setattr(segmenter, "read", read_wrong)
    assert extra.score_photos(segmenter, cache, [0], 0.5, np.zeros((32, 48), np.float32)) == right


def test_errors_are_painted_red_for_false_car_and_blue_for_missed_car():
    truth, prediction = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[:10], prediction[30:] = True, True
    picture = drawing.draw_errors(np.full((20, 20, 3), 128, np.uint8), truth, prediction)
    assert tuple(picture[18, 5]) == drawing.FALSE_CAR and tuple(picture[2, 5]) == drawing.MISSED_CAR
    assert np.ptp(picture[10, 5]) == 0, "what is right stays grey"
