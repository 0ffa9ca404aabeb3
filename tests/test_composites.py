"""Composites: pairs for training, made of cars with exact masks and of other scenes."""

import cv2
import numpy as np
import pytest
from composites import Settings, compose, main

from data import find_pairs


def test_the_label_is_where_the_car_was_pasted():
    photo, alpha = np.full((60, 90, 3), (255, 0, 0), np.uint8), np.zeros((60, 90), np.float32)
    alpha[20:40, 20:70] = 1
    green = np.zeros((80, 120, 3), np.uint8)
    green[..., 1] = 200
    for seed in range(20):
        plain, label = compose([(photo, alpha)], None, 64, 96, np.random.default_rng(seed))
        assert plain.shape == (64, 96, 3) and set(np.unique(label)) == {0, 255}
        scene = green, np.zeros((80, 120), np.uint8)
        picture, label = compose([(photo, alpha)], scene, 64, 96, np.random.default_rng(seed))
        assert picture.shape == (64, 96, 3) and picture.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) == {0, 255}
        inside = cv2.erode(label, np.ones((7, 7))) > 0
        if inside.sum() > 50:  # else the frame cuts the car off
            car, around = (picture[part].astype(float).mean(axis=0) for part in (inside, label == 0))
            assert np.abs(car - around).max() > 20


def test_a_scenes_own_cars_and_unknown_pixels_stay_what_they_are():
    tiny, nothing = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    nothing[3:5, 3:5] = 1
    label = np.full((64, 96), 128, np.uint8)
    label[:, 48:] = 255
    for seed in range(10):
        scene = np.zeros((64, 96, 3), np.uint8), label
        _, composed = compose([(tiny, nothing)], scene, 64, 96, np.random.default_rng(seed))
        assert set(np.unique(composed)) <= {128, 255}


def make(tiny_set, folder, scenes):
    sizes = dict(count=4, width=96, height=64)
    places = dict(image_dir=tiny_set / "train", mask_dir=tiny_set / "train_masks", scene_dir=scenes)
    main(Settings(output=folder, **sizes, **places))
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("composite-*")}


def test_the_command_writes_pairs_that_follow_from_the_seed(tiny_set, tmp_path):
    (tmp_path / "scenes").mkdir()
    scene = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "scenes/street.jpg"), scene)
    first, second = (make(tiny_set, tmp_path / name, tmp_path / "scenes") for name in ("first", "second"))
    pairs, *left_over = find_pairs(tmp_path / "first/train", tmp_path / "first/train_masks")
    assert len(pairs) == 4 and left_over == [[], []]
    assert len(first) == 8 and first == second


def test_an_empty_folder_of_scenes_is_named(tiny_set, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none must hold photos of scenes, got none"):
        make(tiny_set, tmp_path / "out", tmp_path / "none")
