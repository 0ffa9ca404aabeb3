"""The photo studio: its files, its masks, its repeatability, its errors. Every set here is as small as says something."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import studio
from studio import make_studio, name_car, shoot_view

pytest.importorskip("embreex", reason="the studio needs requirements-studio.txt")
STUDIO = [sys.executable, str(SCRIPTS / "studio.py")]


def read_all(folder):
    """Return {name: bytes} of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return make_studio(
        tmp_path_factory.mktemp("studio"), cars=3, width=96, height=64, seed=5, workers=1, progress=False
    )


@pytest.fixture(scope="module")
def one_car():
    """Return photos (16, 128, 192, 3) and masks (16, 128, 192) of one car, views 01 to 16."""
    views = list(shoot_view(3, 0, 192, 128, 0.3, range(1, 17)))
    return np.stack([view[1] for view in views]), np.stack([view[2] for view in views])


def test_files_have_carvanas_names_and_places(small_set):
    names = sorted(read_all(small_set))
    cars = [name_car(5, number) for number in range(3)]
    assert all(len(car) == 12 and set(car) <= set("0123456789abcdef") for car in cars)
    photos = [f"train/{car}_{view:02d}.jpg" for car in cars for view in range(1, 17)]
    masks = [f"train_masks/{car}_{view:02d}_mask.gif" for car in cars for view in range(1, 17)]
    assert names == sorted(photos + masks)


def test_masks_are_palette_gifs_of_0_and_1_that_grey_turns_into_0_and_255(small_set):
    for path in sorted((small_set / "train_masks").iterdir())[:8]:
        with Image.open(path) as mask:
            assert mask.format == "GIF" and mask.mode == "P" and mask.size == (96, 64) and mask.n_frames == 1
            assert set(np.unique(np.asarray(mask))) == {0, 1}
            assert set(np.unique(np.asarray(mask.convert("L")))) == {0, 255}


def test_photos_are_colour_jpegs_of_the_size_asked_for(small_set):
    with Image.open(next((small_set / "train").iterdir())) as photo:
        assert photo.format == "JPEG" and photo.mode == "RGB" and photo.size == (96, 64)


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(small_set, tmp_path):
    make_studio(tmp_path, cars=3, width=96, height=64, seed=5, workers=2, progress=False)
    assert read_all(tmp_path) == read_all(small_set)


def test_a_larger_set_begins_with_the_smaller_one(small_set, tmp_path):
    make_studio(tmp_path, cars=1, width=96, height=64, seed=5, progress=False)
    whole = read_all(small_set)
    assert all(whole[name] == content for name, content in read_all(tmp_path).items())


def test_another_seed_gives_other_cars():
    assert not {name_car(0, number) for number in range(50)} & {name_car(1, number) for number in range(50)}


def test_work_that_was_killed_goes_on_where_it_stopped(small_set, tmp_path):
    command = [*STUDIO, "--cars", "3", "--size", "96x64", "--seed", "5", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("train_masks/*.gif"))) < 5 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("train*/*") if not path.name.startswith(".")}
    assert 5 <= len(kept) < 96
    (tmp_path / "train" / f".{name_car(5, 2)}_16.jpg.1.part").write_bytes(b"half a photo")
    make_studio(tmp_path, cars=3, width=96, height=64, seed=5, workers=1, progress=False)
    assert read_all(tmp_path) == read_all(small_set)
    pairs = {
        path
        for path in kept
        if path.suffix == ".gif" and path.parents[1] / "train" / path.name.replace("_mask.gif", ".jpg") in kept
    }
    assert all(path.stat().st_mtime_ns == kept[path] for path in pairs)  # whole pairs are not made twice


def test_the_car_covers_as_much_of_the_frame_as_carvanas_do():
    shares = [mask.mean() for number in range(6) for _, _, mask, _ in shoot_view(0, number, 72, 48, 0.3, (1, 4, 9))]
    assert 0.08 < min(shares) and max(shares) < 0.42
    assert 0.17 < np.mean(shares) < 0.26


def test_views_turn_the_car_by_a_sixteenth(one_car):
    _, masks = one_car
    differ = [(masks[i] != masks[j]).mean() for i in range(16) for j in range(i)]
    assert min(differ) > 0.01
    width = np.array([np.ptp(np.flatnonzero(mask.any(0))) for mask in masks])
    assert width[[4, 12]].min() > 1.6 * width[[0, 8]].max()  # the sides are longer than the ends
    assert np.abs(width / np.roll(width, 8) - 1).max() < 0.25  # front and back of a view are about as wide


def test_the_shadow_is_not_in_the_mask(one_car):
    """Just below the tyres the floor is dark with shadow; the mask ends above it and the floor pales further away."""
    photos, masks = one_car
    photo, mask = photos[4].mean(-1), masks[4].astype(bool)
    bottom = np.flatnonzero(mask.any(1)).max()
    between = np.flatnonzero(mask[bottom - 3])
    columns = slice(between.min() + 20, between.max() - 20)
    under = ~mask[bottom - 4 : bottom + 1, columns]  # the gap between the wheels
    assert under.any()
    shaded = photo[bottom - 4 : bottom + 1, columns][under].mean()
    open_floor = photo[bottom + 16 : bottom + 22, columns].mean()
    assert shaded < 0.75 * open_floor
    assert not mask[bottom + 1 :].any()


def test_what_is_seen_through_glass_belongs_to_the_car(one_car):
    """The mask of a side view has no hole where the windows are."""
    import cv2

    mask = one_car[1][4]
    outside = cv2.connectedComponents(1 - mask)[0] - 1
    assert outside <= 3  # the room, and at most what shows between the wheels


def test_256_photos_of_480x320_take_at_most_90_seconds_on_2_cores():
    """Measured as processor time of one process, so that a busy machine does not fail it."""
    start = time.process_time()
    photos = list(shoot_view(0, 0, 480, 320, 0.3, range(1, 17, 2)))
    seconds = time.process_time() - start
    assert len(photos) == 8
    assert seconds / 8 * 256 / 2 < 90, f"{seconds / 8:.2f} s a photo"


def test_a_photo_larger_than_one_batch_of_rays_is_whole():
    ((_, photo, mask, _),) = shoot_view(0, 0, 959, 640, 0.3, [3])
    assert photo.shape == (640, 959, 3) and mask.shape == (640, 959) and 0.1 < mask.mean() < 0.41


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
        make_studio(tmp_path, **{"cars": 1, "width": 96, "height": 64, "progress": False, **change})


def test_a_folder_with_photos_of_another_size_is_refused(small_set):
    with pytest.raises(
        ValueError, match="output must be empty or hold photos of 120x80, got .* of 96x64: choose another"
    ):
        make_studio(small_set, cars=1, width=120, height=80, seed=5, progress=False)


def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        make_studio(tmp_path / "taken", cars=1, width=96, height=64, progress=False)


def test_a_missing_ray_library_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(studio, "EmbreeScene", None)
    with pytest.raises(ValueError, match="pip install -r requirements-studio.txt"):
        make_studio(tmp_path, cars=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "large"], "size must be width x height such as 480x320, got large"),
        (["--cars", "0"], "cars must be at least 1, got 0"),
    ],
)
def test_the_command_line_says_a_mistake_in_one_line(options, sentence, tmp_path):
    result = subprocess.run([*STUDIO, "--output", str(tmp_path), *options], capture_output=True, text=True, check=False)
    assert result.returncode in (1, 2)
    assert sentence in result.stderr and len(result.stderr.strip().splitlines()) == 1
