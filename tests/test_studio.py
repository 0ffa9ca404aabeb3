"""The photo studio: its files, its masks, its repeatability, its errors."""

import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from carvana.files import PROJECT_DIR
from carvana.studio import light
from carvana.studio.camera import shoot_car
from PIL import Image
from studio import make_studio, name_car

pytest.importorskip("embreex", reason="the studio needs requirements-studio.txt")
STUDIO = [sys.executable, PROJECT_DIR / "scripts/studio.py"]
SMALL = dict(cars=3, width=96, height=64, seed=5, workers=1, progress=False)


def read_all(folder):
    """Return {name: bytes} of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return make_studio(tmp_path_factory.mktemp("studio"), **SMALL)


@pytest.fixture(scope="module")
def one_car():
    """Views 1 to 16 of one car, 192x128, each also without the car."""
    return list(shoot_car(3, 0, 192, 128, 0.3, range(1, 17), empty=True))


def test_files_have_carvanas_names_places_and_formats(small_set):
    cars = [name_car(5, number) for number in range(3)]
    assert all(len(car) == 12 and set(car) <= set("0123456789abcdef") for car in cars)
    photos = [f"train/{car}_{view:02d}.jpg" for car in cars for view in range(1, 17)]
    masks = [f"train_masks/{car}_{view:02d}_mask.gif" for car in cars for view in range(1, 17)]
    assert sorted(read_all(small_set)) == sorted(photos + masks)
    with Image.open(small_set / photos[0]) as photo:
        assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (96, 64))
    for name in masks[:8]:
        with Image.open(small_set / name) as mask:
            assert (mask.format, mask.mode, mask.size, mask.n_frames) == ("GIF", "P", (96, 64), 1)
            assert set(np.unique(np.asarray(mask))) == {0, 1}
            assert set(np.unique(np.asarray(mask.convert("L")))) == {0, 255}


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(small_set, tmp_path):
    make_studio(tmp_path, **{**SMALL, "workers": 2})
    assert read_all(tmp_path) == read_all(small_set)


def test_a_larger_set_begins_with_the_smaller_one_and_another_seed_gives_other_cars(small_set, tmp_path):
    make_studio(tmp_path, **{**SMALL, "cars": 1})
    assert read_all(tmp_path).items() < read_all(small_set).items()
    assert not {name_car(0, number) for number in range(50)} & {name_car(1, number) for number in range(50)}


def test_work_that_was_killed_goes_on_where_it_stopped(small_set, tmp_path):
    options = ["--cars", "3", "--size", "96x64", "--seed", "5", "--output", tmp_path]
    process = subprocess.Popen([*STUDIO, *options], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("train_masks/*.gif"))) < 5 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("train_masks/*.gif")}
    assert 5 <= len(kept) < 48
    (tmp_path / "train" / f"{name_car(5, 2)}_16.jpg.tmp").write_bytes(b"half a photo")
    make_studio(tmp_path, **SMALL)
    assert read_all(tmp_path) == read_all(small_set)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())  # not made twice


def test_the_car_covers_as_much_of_the_frame_as_carvanas_do():
    shares = [shot.mask.mean() for number in range(6) for shot in shoot_car(0, number, 72, 48, 0.3, (1, 4, 9))]
    assert 0.08 < min(shares) and max(shares) < 0.42
    assert 0.17 < np.mean(shares) < 0.26


def test_views_turn_the_car_by_a_sixteenth(one_car):
    masks = [shot.mask for shot in one_car]
    assert min((masks[i] != masks[j]).mean() for i in range(16) for j in range(i)) > 0.01
    width = np.array([np.ptp(np.flatnonzero(mask.any(0))) for mask in masks])
    assert width[[4, 12]].min() > 1.6 * width[[0, 8]].max()  # the sides are longer than the ends
    assert np.abs(width / np.roll(width, 8) - 1).max() < 0.25  # front and back of a view are about as wide


def test_the_shadow_is_not_in_the_mask_and_what_is_seen_through_glass_is(one_car):
    shot = one_car[4]
    under = (shot.floor_light < 0.6) & (shot.mask == 0)  # the floor below the sills
    assert under.sum() > 50
    assert shot.photo[under].mean() < 0.6 * shot.empty[under].mean()
    n_outside = cv2.connectedComponents(1 - shot.mask)[0] - 1
    assert n_outside <= 3  # the room, and at most what shows between the wheels: no window is a hole


def test_without_the_car_the_photo_is_the_same_where_neither_car_nor_shadow_is(one_car):
    for shot in one_car:
        assert shot.photo.shape == shot.empty.shape == (128, 192, 3)
        away = (shot.coverage == 0) & (shot.floor_light == 1)
        away = cv2.erode(away.astype(np.uint8), np.ones((9, 9)), borderValue=1).astype(bool)  # the lens blurs
        away[64:] = False  # where the floor reflects the car
        assert away.sum() > 500
        assert np.array_equal(shot.photo[away], shot.empty[away])
        assert np.array_equal(shot.mask, shot.coverage >= 0.5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cars": 0}, "cars must be at least 1, got 0"),
        ({"width": 20}, "size must be from 32x32 to 1918x1280 .width x height., got 20x64"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"stray": 2.0}, "stray must be from 0 to 1, got 2.0"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        make_studio(tmp_path, **{**SMALL, **change})


def test_a_folder_with_photos_of_another_size_is_refused(small_set):
    with pytest.raises(ValueError, match="must be of 120x80 pixels to be added to, got 96x64. Name another --output"):
        make_studio(small_set, **{**SMALL, "width": 120, "height": 80})


def test_a_missing_ray_tracer_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(light, "EmbreeScene", None)
    with pytest.raises(RuntimeError, match="pip install -r requirements-studio.txt"):
        make_studio(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "large"], "size must be width x height such as 480x320, got large"),
        (["--cars", "0"], "cars must be at least 1, got 0"),
        (["--output", __file__], "could not be written"),
    ],
)
def test_the_command_line_says_a_mistake_in_one_line(options, sentence, tmp_path):
    result = subprocess.run([*STUDIO, "--output", tmp_path, "--cars", "1", *options], capture_output=True, text=True)
    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
