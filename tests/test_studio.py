"""The photo studio: its files, its masks, its repeatability, its errors."""

import sys

import cv2
import numpy as np
import pytest
from carvana.files import PROJECT_DIR
from carvana.studio import light
from carvana.studio.camera import shoot_car
from conftest import kill_when
from PIL import Image
from studio import Settings, make_studio

pytest.importorskip("embreex", reason="the studio needs requirements-studio.txt")
SMALL = dict(cars=3, size="96x64", seed=5, workers=1)


def make_set(folder, **changes):
    make_studio(Settings(output=folder, **(SMALL | changes)))
    return folder


def read_all(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def one_car():
    """Views 1 to 16 of one car, 192x128, each also without the car."""
    return list(shoot_car(3, 0, 192, 128, 0.3, range(1, 17), empty=True))


def test_files_have_carvanas_names_places_and_formats(small_set):
    cars = sorted({name[6:18] for name in read_all(small_set) if name.startswith("train/")})
    assert len(cars) == 3 and set("".join(cars)) <= set("0123456789abcdef")
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
    assert read_all(make_set(tmp_path, workers=2)) == read_all(small_set)


def test_a_larger_set_begins_with_the_smaller_one_and_another_seed_gives_other_cars(small_set, tmp_path):
    assert read_all(make_set(tmp_path / "same", cars=1)).items() < read_all(small_set).items()
    other = make_set(tmp_path / "other", cars=1, seed=6)
    assert not read_all(other).keys() & read_all(small_set).keys()


def test_work_that_was_killed_goes_on_where_it_stopped(small_set, tmp_path):
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, PROJECT_DIR / "scripts/studio.py", *options, "--output", tmp_path]
    kill_when(lambda: len(list(tmp_path.glob("train_masks/*.gif"))) >= 5, command)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("train_masks/*.gif")}
    assert 5 <= len(kept) < 48
    assert read_all(make_set(tmp_path)) == read_all(small_set)  # no half file is left behind, either
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
    low = np.indices(shot.mask.shape)[0] > np.flatnonzero(shot.mask.any(1)).max() - 12
    below = low & (shot.photo.mean(2) < 0.6 * shot.empty.mean(2)) & (shot.coverage == 0)  # the floor round the sills
    assert below.sum() > 50
    n_outside = cv2.connectedComponents(1 - shot.mask)[0] - 1
    assert n_outside <= 3  # the room, and at most what shows between the wheels: no window is a hole


def test_without_the_car_the_photo_is_the_same_far_from_it(one_car):
    for shot in one_car:
        assert shot.photo.shape == shot.empty.shape == (128, 192, 3)
        top = np.flatnonzero(shot.mask.any(1)).min() - 6  # the lens blurs
        assert top > 5
        assert np.array_equal(shot.photo[:top], shot.empty[:top])
        assert np.array_equal(shot.mask, shot.coverage >= 0.5)


def test_a_folder_with_photos_of_another_size_is_refused(small_set):
    with pytest.raises(ValueError, match="must be of 120x80 pixels, got 96x64. Name another --output"):
        make_set(small_set, size="120x80")


def test_a_missing_ray_tracer_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(light, "EmbreeScene", None)
    with pytest.raises(RuntimeError, match="pip install -r requirements-studio.txt"):
        make_set(tmp_path)


@pytest.mark.parametrize("size", ["large", "20x64", "1919x64", "64x1281", "64x"])
def test_a_size_that_cannot_be_photographed_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be width x height from 32x32 to 1918x1280, got {size}"):
        Settings(size=size)
