"""The parts that turn a probability into pictures, on photos whose car and background are known."""

import cv2
import numpy as np
import pytest
from carvana import cutout
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
    alpha = cutout.find_transparency(probability, threshold)[0]
    assert (np.diff(alpha.astype(int)) >= 0).all()
    assert alpha[probability[0] < threshold / 2 - 0.001].max() == 0
    assert alpha[probability[0] > (1 + threshold) / 2 + 0.001].min() == 255
    assert abs(int(alpha[round(threshold * 1000)]) - 128) <= 1
    assert ((alpha > 0) & (alpha < 255)).sum() > 50


@pytest.mark.parametrize("size", [(320, 480), (1280, 1918)])
def test_edge_gets_the_cars_own_colour_and_opaque_pixels_stay_bitwise_identical(size):
    photo, car, alpha = draw_car(*size)
    cleaned = cutout.clean_edge(photo, alpha)
    edge = (alpha > 0) & (alpha < 255)
    error = lambda picture: np.abs(picture[edge].astype(float) - car[edge]).mean()
    assert error(cleaned) < 0.25 * error(photo)
    assert np.array_equal(cleaned[~edge], photo[~edge])
    on_black = cutout.replace_background(cleaned, alpha, np.zeros((1, 1, 3), np.uint8))
    assert on_black[..., 1].max() <= car[..., 1].max() + 5  # none of the wall's green shines through
    cut = cutout.cut_out(cleaned, alpha)
    assert np.array_equal(cut[..., 3], alpha)
    assert not cut[alpha == 0].any()


def test_edge_of_no_car_of_all_car_and_of_a_line_is_cleaned_without_error():
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    alpha = np.zeros((100, 150), np.uint8)
    assert np.array_equal(cutout.clean_edge(photo, alpha), photo)
    assert np.array_equal(cutout.clean_edge(photo, alpha + np.uint8(255)), photo)
    alpha[50] = 200
    assert np.array_equal(cutout.clean_edge(photo, alpha)[alpha == 0], photo[alpha == 0])
    assert cutout.clean_edge(photo[:1, :1], alpha[50:51, :1]).shape == (1, 1, 3)


def draw_floor(shadow_strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a car on a floor with a line, darker to the right; return photo, alpha and the shadow's opacity."""
    rows, columns = np.mgrid[:400, :600].astype(np.float32)
    alpha = np.zeros((400, 600), np.uint8)
    cv2.rectangle(alpha, (180, 120), (420, 230), 255, -1)
    for x in (225, 375):
        cv2.circle(alpha, (x, 230), 28, 255, -1)
    cast = np.zeros((400, 600), np.float32)
    cv2.ellipse(cast, (300, 245), (150, 30), 0, 0, 360, 1, -1)
    cast = shadow_strength * cv2.GaussianBlur(cast, (0, 0), 8)
    floor = (200 - columns / 8) * np.where(abs(rows - 330) < 2, 0.6, 1) * (1 - cast)
    photo = np.where(alpha > 0, np.float32(90), floor).round().astype(np.uint8)
    return cv2.merge([photo] * 3), alpha, cast


def test_shadow_is_as_dark_as_the_floor_shows_it():
    photo, alpha, cast = draw_floor(0.7)
    shadow = cutout.find_shadow(photo, alpha) / 255
    dark = (cast > 0.1) & (alpha == 0)
    assert np.abs(shadow - cast)[dark].mean() < 0.2 * cast[dark].mean()
    assert shadow[(cast < 0.01) & (alpha == 0)].max() < 0.05  # neither the line nor the wall is a shadow
    assert shadow[225:250, 300].min() > 0.4  # it goes on under the car


def test_contact_shadow_stands_in_where_the_floor_shows_none():
    photo, alpha, _ = draw_floor(0)
    for part in np.s_[:, :], np.s_[:262], np.s_[120:262, 180:421]:
        shadow = cutout.find_shadow(photo[part], alpha[part])
        assert shadow.shape == alpha[part].shape
        assert shadow[-15:].max() > 60 or shadow[240:262, 300].max() > 60  # between the wheels
        assert shadow[:80].max() == 0
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    assert 60 < cutout.find_shadow(noise, alpha)[:, 300].max() < 160
    assert not cutout.find_shadow(photo, np.zeros_like(alpha)).any()
    assert cutout.find_shadow(photo[:1, :1], alpha[:1, :1] + np.uint8(255)).shape == (1, 1)


def test_shadow_is_black_under_the_car_in_the_cut_out_and_darkens_a_new_background():
    photo, alpha, _ = draw_floor(0.7)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 1)
    shadow = cutout.find_shadow(photo, alpha)
    cut = cutout.cut_out(photo, alpha, shadow)
    assert np.array_equal(cut[alpha == 255], np.dstack([photo, alpha])[alpha == 255])
    assert not cut[alpha == 0, :3].any()
    assert np.array_equal(cut[alpha == 0, 3], shadow[alpha == 0])
    white = np.full((1, 1, 3), 255, np.uint8)
    on_white = cut[..., :3] * (cut[..., 3:] / 255) + 255 - cut[..., 3:]
    assert np.abs(on_white - cutout.replace_background(photo, alpha, white, shadow)).max() <= 2


def test_background_fills_the_photo_undistorted_and_the_car_keeps_its_colours():
    photo = draw_photo(180, 120)
    alpha = np.where(is_red(photo), 255, 0).astype(np.uint8)
    composed = cutout.replace_background(photo, alpha, cutout.read_background("#0a0b0c"))
    assert np.array_equal(composed[alpha == 255], photo[alpha == 255])
    assert (composed[alpha == 0] == (10, 11, 12)).all()
    circle = np.zeros((100, 300, 3), np.uint8)
    cv2.circle(circle, (150, 50), 30, (255, 255, 255), -1)
    for height, width in ((200, 200), (50, 400), (400, 50), (1, 1)):
        covered = cutout.cover(circle, height, width)
        assert covered.shape == (height, width, 3)
    rows, columns = np.nonzero(cutout.cover(circle, 200, 200)[..., 0] > 127)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2 and abs(rows.mean() - 100) < 2 and abs(columns.mean() - 100) < 2


def test_a_faint_aerial_is_kept_and_a_faint_panel_or_a_faint_line_elsewhere_is_not():
    logits = np.full((640, 960), -6, np.float32)
    logits[300:500, 200:700] = 6
    logits[200:300, 400:403] = logits[500:560, 300:500] = logits[100:200, 800:803] = -0.5  # probability 0.38
    alpha = np.where(logits > 0, 255, 0).astype(np.uint8)
    before = alpha.copy()
    cutout.keep_thin_parts(alpha, logits, 0.5)
    assert (alpha[200:290, 400:403] == 255).all()
    alpha[200:300, 400:403] = 0
    assert np.count_nonzero(alpha != before) < 20  # rounded corners of the panel at most


def test_crop_keeps_the_whole_car_in_the_shape_asked_for():
    alpha = np.zeros((300, 500), np.uint8)
    alpha[100:200, 200:400] = 255
    assert cutout.find_crop(alpha, 0) == (190, 90, 220, 120)
    for shape in ("1:1", "4:3", "21:9", "9:16"):
        box = cutout.find_crop(alpha, cutout.read_crop((shape,)))
        cropped = cutout.crop_picture(alpha, box)
        assert cropped.shape == (box[3], box[2])
        assert box[2] / box[3] == pytest.approx(cutout.read_crop((shape,)), abs=0.02)
        assert np.count_nonzero(cropped) == np.count_nonzero(alpha)
    assert cutout.crop_picture(alpha, cutout.find_crop(alpha, 9 / 16))[0].max() == 0  # taller than the photo: padded
    alpha[:] = 0
    assert cutout.find_crop(alpha, 1) == (0, 0, 500, 300)
    assert (cutout.read_crop(None), cutout.read_crop(())) == (None, 0)
    for words in (("4x3",), ("0:3",), ("4:3", "car.jpg"), ("car.jpg",)):
        with pytest.raises(ValueError, match="crop must be width:height such as 4:3, got"):
            cutout.read_crop(words)
