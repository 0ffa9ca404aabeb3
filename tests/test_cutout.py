"""The parts that turn a probability into pictures, on photos whose car and background are known."""

import cv2
import numpy as np
import pytest
from carvana.cutout import (
    OUTLINE_COLOUR,
    clean_edge,
    cover,
    cut_out,
    draw_overlay,
    find_transparency,
    read_background,
    replace_background,
)
from PIL import Image
from red_network import draw_photo, is_red


def draw_car(height: int = 320, width: int = 480) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a striped red car with an aerial before a green wall.

    Returns:
        Photo and the car alone, RGB (H, W, 3), uint8, and alpha (H, W), uint8.
    """
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    light = 0.75 + 0.25 * np.sin(rows / 9)[..., None]
    car, wall = light * (200, 40, 60), (1.25 - columns / width / 2)[..., None] * (40, 160, 90)
    alpha = np.zeros((4 * height, 4 * width), np.uint8)
    cv2.ellipse(alpha, (2 * width, 2 * height), (int(1.3 * width), height), 0, 0, 360, 255, -1)
    cv2.line(alpha, (2 * width, height), (int(2.2 * width), height // 3), 255, 10)
    alpha = cv2.resize(cv2.GaussianBlur(alpha, (0, 0), 4), (width, height), interpolation=cv2.INTER_AREA)
    photo = wall + (car - wall) * (alpha / 255)[..., None]
    return photo.round().astype(np.uint8), car.round().astype(np.uint8), alpha


@pytest.mark.parametrize("threshold", [0.15, 0.5, 0.85])
def test_transparency_is_steep_at_the_threshold_and_exact_elsewhere(threshold):
    probability = np.linspace(0, 1, 1001, dtype=np.float32)[None]
    alpha = find_transparency(probability, threshold)[0]
    assert (np.diff(alpha.astype(int)) >= 0).all()
    assert alpha[probability[0] < threshold / 2 - 0.001].max() == 0
    assert alpha[probability[0] > (1 + threshold) / 2 + 0.001].min() == 255
    assert abs(int(alpha[round(threshold * 1000)]) - 128) <= 1
    assert ((alpha > 0) & (alpha < 255)).sum() > 50


@pytest.mark.parametrize("size", [(320, 480), (1280, 1918)])
def test_edge_gets_the_cars_own_colour_and_opaque_pixels_stay_bitwise_identical(size):
    photo, car, alpha = draw_car(*size)
    cleaned = clean_edge(photo, alpha)
    edge = (alpha > 0) & (alpha < 255)
    error = lambda picture: np.abs(picture[edge].astype(float) - car[edge]).mean()
    assert error(cleaned) < 0.25 * error(photo)
    assert np.array_equal(cleaned[~edge], photo[~edge])
    on_black = replace_background(cleaned, alpha, np.zeros((1, 1, 3), np.uint8))
    assert on_black[..., 1].max() <= car[..., 1].max() + 5  # none of the wall's green shines through
    cut = cut_out(cleaned, alpha)
    assert np.array_equal(cut[..., 3], alpha)
    assert not cut[alpha == 0].any()


def test_edge_of_no_car_of_all_car_and_of_a_line_is_cleaned_without_error():
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    alpha = np.zeros((100, 150), np.uint8)
    assert np.array_equal(clean_edge(photo, alpha), photo)
    assert np.array_equal(clean_edge(photo, alpha + np.uint8(255)), photo)
    alpha[50] = 200
    assert np.array_equal(clean_edge(photo, alpha)[alpha == 0], photo[alpha == 0])
    assert clean_edge(photo[:1, :1], alpha[50:51, :1]).shape == (1, 1, 3)


def test_background_fills_the_photo_undistorted_and_the_car_keeps_its_colours():
    photo = draw_photo(180, 120)
    alpha = np.where(is_red(photo), 255, 0).astype(np.uint8)
    composed = replace_background(photo, alpha, read_background("#0a0b0c"))
    assert np.array_equal(composed[alpha == 255], photo[alpha == 255])
    assert (composed[alpha == 0] == (10, 11, 12)).all()
    circle = np.zeros((100, 300, 3), np.uint8)
    cv2.circle(circle, (150, 50), 30, (255, 255, 255), -1)
    for height, width in ((200, 200), (50, 400), (400, 50), (1, 1)):
        covered = cover(circle, height, width)
        assert covered.shape == (height, width, 3)
    rows, columns = np.nonzero(cover(circle, 200, 200)[..., 0] > 127)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2 and abs(rows.mean() - 100) < 2 and abs(columns.mean() - 100) < 2


def test_background_must_be_a_colour_or_a_photo(tmp_path):
    assert read_background("white").tolist() == [[[255, 255, 255]]]
    Image.fromarray(draw_photo(20, 10)).save(tmp_path / "wall.png")
    assert read_background(str(tmp_path / "wall.png")).shape == (10, 20, 3)
    with pytest.raises(
        ValueError, match="background must be a colour such as white or #e0e0e0, or a photo's path, got whit."
    ):
        read_background("whit")
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(ValueError, match="text.jpg must be a JPEG, PNG"):
        read_background(str(tmp_path / "text.jpg"))


def test_overlay_shows_car_and_outline():
    photo = np.full((120, 180, 3), 128, np.uint8)
    mask = np.zeros((120, 180), bool)
    mask[30:90, 40:140] = True
    overlay = draw_overlay(photo, mask)
    assert np.array_equal(overlay[~mask][0], photo[0, 0])
    assert not np.array_equal(overlay[60, 90], photo[60, 90])
    assert tuple(overlay[30, 90]) == tuple(overlay[60, 40]) == OUTLINE_COLOUR
    assert (photo == 128).all()  # the photo itself is not drawn upon
