"""From files to batches: matching, checking, splitting, caching, augmenting, downloading."""

import re
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
import tyro
from carvana import download
from carvana.augmentation import replace_background
from carvana.pictures import area_average
from PIL import Image

import data
from data import CarDataset, EpochBatches


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def photo(width=48, height=32):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def mask(width=48, height=32):
    array = np.zeros((height, width), np.uint8)
    array[8:24, 10:30] = 255
    return array


# ------------------------------------------------------------------------------------------------------------ pairs


def test_photos_and_masks_are_matched_by_exact_stem_and_hidden_files_ignored(tmp_path):
    touch(tmp_path / "x", "a.jpg", "b.PNG", "ab.webp", "c.tif", ".hidden.jpg", "notes.txt")
    (tmp_path / "x" / "folder.jpg").mkdir()
    touch(tmp_path / "y", "a_mask.gif", "b.png", "ab_mask.png", ".a_mask.gif", "d_mask.gif")
    pairs, *unmatched = data.find_pairs(tmp_path / "x", tmp_path / "y")
    matched = [(pair.image_path.name, pair.mask_path.name) for pair in pairs]
    assert matched == [("a.jpg", "a_mask.gif"), ("ab.webp", "ab_mask.png"), ("b.PNG", "b.png")]
    assert [[path.name for path in paths] for paths in unmatched] == [["c.tif"], ["d_mask.gif"]]


def test_photos_and_masks_may_share_a_folder_but_two_photos_no_name(tmp_path):
    touch(tmp_path, "a.png", "a_mask.png", "b.jpg", "b_mask.png", "c.png")
    pairs, *unmatched = data.find_pairs(tmp_path, tmp_path)
    assert [(p.image_path.name, p.mask_path.name) for p in pairs] == [("a.png", "a_mask.png"), ("b.jpg", "b_mask.png")]
    assert unmatched == [[tmp_path / "c.png"], []]
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="a.png and a.jpg share one name"):
        data.find_pairs(tmp_path, tmp_path)


def test_carvana_names_tell_car_and_view_and_other_photos_are_cars_of_their_own():
    assert data.split_name("0cdf5b5d0ce1_16") == ("0cdf5b5d0ce1", 16)
    for stem in ("0cdf5b5d0ce1_17", "0cdf5b5d0ce_01", "holiday_01"):
        assert data.split_name(stem) == (stem, 0)


def test_groups_keep_frames_of_one_film_or_folder_together(tmp_path):
    for film in (1, 2):
        for frame in range(3):
            for path in (f"photos/film{film}_{frame:04d}.jpg", f"photos/car{film}/{frame}.jpg"):
                save(tmp_path / path, photo())
                save(tmp_path / path.replace("photos", "masks").replace("jpg", "png"), mask())
    folders = tmp_path / "photos", tmp_path / "masks"
    groups = {}
    for group_by in ("name", "prefix", "folder"):
        pairs, *_ = data.find_pairs(*folders, group_by)
        groups[group_by] = sorted({pair.car for pair in pairs}), len(pairs), data.group_word(pairs, group_by)
    assert groups["prefix"] == (["film1", "film2"], 6, "groups")
    assert groups["folder"] == (["", "car1", "car2"], 12, "folders")
    assert len(groups["name"][0]) == 6 and groups["name"][2] == "photos"


@pytest.mark.parametrize("name", ["{}.jpg.png", "{}_gt.png", "{}_label.png"])
def test_a_near_miss_of_names_gets_a_hint(tmp_path, name, capsys):
    for number in range(6):
        save(tmp_path / f"photos/car{number}.jpg", photo())
        save(tmp_path / "masks" / name.format(f"car{number}"), mask())
    assert data.check(tmp_path / "photos", tmp_path / "masks") == 1
    out = capsys.readouterr().out
    assert f"{name.format('car0')} looks like the mask of car0.jpg: rename it car0_mask.png" in out
    assert out.count("\n") < 10 and "and 1 more" in out


def test_what_lies_beside_photos_and_masks_is_counted_and_named(tmp_path, capsys):
    (tmp_path / "photos/sub").mkdir(parents=True)
    for path in ("a.jpg", "b.jfif", "e.jpg", "sub/c.jpg"):
        Image.fromarray(photo()).save(tmp_path / "photos" / path, "JPEG")
    save(tmp_path / "masks/a.png", mask())
    save(tmp_path / "masks/b.png", mask())
    touch(tmp_path / "photos", "a_cutout.png", "d.heic", "film.mov")
    touch(tmp_path / "masks", "labels.json")
    pairs = data.require_pairs(tmp_path / "photos", tmp_path / "masks")
    said = capsys.readouterr().err
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert "photos: 2 files not read: d.heic, film.mov (photos are .bmp .jfif" in said
    assert "masks: 1 file not read: labels.json (masks are" in said
    assert "1 sub-folder not searched: sub. --group-by folder" in said
    assert "1 file left out, named like results of this program" in said and "a_cutout.png" in said
    assert "note: 1 photo without a mask, left out: e.jpg." in said


def test_a_folder_without_pairs_is_told_which_mask_belongs_to_a_photo(tmp_path):
    (tmp_path / "a.jpg").touch()
    message = "at least one photo with its mask, got 1 photo and 0 masks .* A photo x.jpg belongs to"
    with pytest.raises(ValueError, match=message):
        data.require_pairs(tmp_path, tmp_path)


# ------------------------------------------------------------------------------------------------------------ split


def test_the_split_is_a_function_of_cars_and_seed_alone():
    cars = [f"{n:012x}" for n in range(50)]
    chosen = data.split_cars(cars, 0.2, seed=3)
    assert chosen == data.split_cars(list(reversed(cars)) * 16, 0.2, seed=3)
    assert len(chosen) == 10
    assert chosen != data.split_cars(cars, 0.2, seed=4)


def test_one_car_more_moves_few_others():
    cars = [f"{n:012x}" for n in range(50)]
    before, after = data.split_cars(cars, 0.2, 0), data.split_cars([*cars, "ffffffffffff"], 0.2, 0)
    assert len(before - after) <= 1


def test_both_sides_of_a_split_hold_a_car_and_one_car_cannot_be_split():
    assert len(data.split_cars(["a", "b"], 0.0, 0)) == 1
    assert len(data.split_cars(["a", "b"], 0.9, 0)) == 1
    with pytest.raises(ValueError, match="at least 2 cars, one of them to validate on, got 1"):
        data.split_cars(["a"] * 16, 0.1, 0)


def test_limit_keeps_whole_cars(pairs):
    assert {p.car for p in data.limit_cars(pairs, 9)} == {"000000000001", "000000000002"}
    assert len(data.limit_cars(pairs, 9)) == 8
    with pytest.raises(ValueError, match="limit must leave room for a whole car, got 3. The first car has 4 photos"):
        data.limit_cars(pairs, 3)


# ------------------------------------------------------------------------------------------------------------ masks


def draw_scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A light wall, a darker floor, a dark blob that stands for the car: photo (80, 120, 3), mask (80, 120), bool."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:80, :120]
    car = ((x - 120 * rng.uniform(0.4, 0.6)) / 30) ** 2 + ((y - 48) / 16) ** 2 < 1
    image = np.where(y[..., None] < 56, [200, 205, 210], [120, 118, 115]) + rng.normal(0, 4, (80, 120, 3))
    image[car] = rng.uniform(20, 90, 3)
    return image.clip(0, 255).astype(np.uint8), car


white = lambda car: car * np.uint8(255)


def draw_set(folder, make_mask, n=6, ending="png", orientation=1, turn=lambda picture: picture):
    """Save photos and the masks that `make_mask(number, car)` returns; return their two folders."""
    (folder / "photos").mkdir(parents=True), (folder / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number in range(n):
        image, car = draw_scene(number)
        turn(Image.fromarray(image)).save(folder / f"photos/car{number}.jpg", quality=95, exif=exif)
        made = make_mask(number, car)
        made = made if isinstance(made, Image.Image) else Image.fromarray(made)
        made.save(folder / f"masks/car{number}.{ending}")
    return folder / "photos", folder / "masks"


@pytest.fixture
def check_set(tmp_path, capsys):
    """Run `data.py check` on a drawn set; return its exit code, what it printed, and coverage and known of each row."""

    def check(make_mask, values=((), ()), **how):
        folders = draw_set(tmp_path / f"set{len(list(tmp_path.iterdir()))}", make_mask, **how)
        capsys.readouterr()
        code, out = data.check(*folders, "name", *values), capsys.readouterr().out
        covered = {}
        store = lambda row, image, *label: covered.update({row: label})
        data.read_set(data.find_pairs(*folders)[0], 120, 80, *values, store=store, quiet=True)
        return code, out, covered

    return check


def is_right(covered: dict) -> bool:
    return all(np.array_equal(coverage == 255, draw_scene(row)[1]) for row, (coverage, _) in covered.items())


def with_palette(indices: np.ndarray, *colours: int) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8)).convert("P")
    picture.putpalette(colours)
    return picture


def with_alpha(colours: np.ndarray, car: np.ndarray) -> np.ndarray:
    return np.dstack([np.broadcast_to(np.uint8(colours), (*car.shape, 3)), white(car)])


GOOD_SETS = {
    "palettes in another order": lambda n, car: (
        with_palette(car, 0, 0, 0, 255, 255, 255) if n % 2 else with_palette(~car, 255, 255, 255, 0, 0, 0)
    ),
    "red on black": lambda n, car: np.where(car[..., None], [200, 0, 0], [0, 0, 0]).astype(np.uint8),
    "16 bits in some files, 8 in others": lambda n, car: car * np.uint16(65535) if n % 2 else white(car),
    "0 and 1 in some files, 0 and 255 in others": lambda n, car: car.astype(np.uint8) * (255 if n % 2 else 1),
    "white on transparent": lambda n, car: with_alpha([255, 255, 255], car),
    "black on transparent": lambda n, car: with_alpha([0, 0, 0], car),
    "a cut-out, transparent round it": lambda n, car: with_alpha(draw_scene(n)[0], car),
}


@pytest.mark.parametrize("kind", GOOD_SETS)
def test_one_rule_reads_a_whole_set_of_masks(check_set, kind):
    code, out, covered = check_set(GOOD_SETS[kind], n=5)
    assert code == 0 and is_right(covered) and "warning" not in out
    assert ("alpha channel" in out) == ("transparent" in kind)


@pytest.mark.parametrize("ending", ["tif", "bmp"])
def test_tiff_and_bmp_masks_are_read(check_set, ending):
    code, _, covered = check_set(lambda n, car: white(car), ending=ending)
    assert code == 0 and len(covered) == 6 and is_right(covered)


def test_jpeg_masks_are_refused_by_name_and_the_rule_is_said_once(check_set):
    code, out, _ = check_set(lambda n, car: white(car), n=7, ending="jpg")
    assert code == 1 and "masks: 7 files not read: car0.jpg" in out and "JPEG and WebP smear the edge" in out
    assert "7 photos without a mask, left out: car0.jpg, car1.jpg, car2.jpg, car3.jpg, car4.jpg and 2 more." in out
    assert out.count("A photo x.jpg belongs to the mask x_mask.png") == 1


def test_values_that_mean_different_things_are_an_error_with_the_way_out(check_set):
    def classes(n, car):  # 1 a car, 2 its plate or, in the last file, a person
        values = car.astype(np.uint8)
        values[45:50, 55:65] *= 2
        return np.roll(car, -40, axis=1).astype(np.uint8) * 2 if n == 5 else values

    code, out, _ = check_set(classes)
    assert code == 1 and "got 3: 0 (6 files), 1 (5 files), 2 (6 files). They look like class numbers" in out
    assert "--car-value 1" in out
    code, out, covered = check_set(classes, [("1", "2"), ()])
    assert code == 0 and all(np.array_equal(covered[row][0] == 255, draw_scene(row)[1]) for row in range(5))
    code, out, covered = check_set(classes, ["1", ()])
    assert code == 0 and not covered[5][0].any()
    assert "1 of 6 photos without a car, which is fine if it is meant: car5.png" in out
    code, out, _ = check_set(lambda n, car: white(car), ["3", ()])
    assert code == 1 and "car_value must be a value of the masks, got 3. They hold 0 (6 files), 255 (6 files)" in out


def test_voc_masks_are_read_by_class_number_or_colour(check_set):
    palette = [0] * 768
    palette[21:24], palette[765:] = [128, 128, 128], [224, 224, 192]

    def voc(n, car):  # 7 is car, a border round it belongs to no class
        return with_palette(np.where(np.roll(car, 2, axis=1) & ~car, 255, 7 * car), *palette)

    code, out, _ = check_set(voc)
    assert code == 1 and "--car-value 128" in out and "Class numbers" in out
    border = np.roll(draw_scene(0)[1], 2, axis=1) & ~draw_scene(0)[1]
    for values in ([["7"], ["255"]], [["#808080"], ["#e0e0c0"]]):
        code, out, covered = check_set(voc, values)
        assert code == 0 and is_right(covered) and np.array_equal(covered[0][1] == 0, border)


def test_inverted_masks_are_warned_of_and_read_with_car_value(check_set):
    inverted = lambda n, car: white(~car)
    code, out, _ = check_set(inverted)
    assert code == 0 and "warning:  masks look inverted: all four corners of 6 of 6 photos are car (car0.png" in out
    assert "car covers 84% of a photo on average. If the car is 0 in all masks: --car-value 0" in out
    code, out, covered = check_set(inverted, ["0", ()])
    assert code == 0 and is_right(covered) and "warning" not in out
    code, out, _ = check_set(lambda n, car: white(car if n % 3 else ~car))
    assert "all four corners of 2 of 6 photos are car (car0.png, car3.png)" in out


def test_masks_upside_down_or_drawn_before_an_exif_rotation_are_named(check_set):
    code, out, _ = check_set(lambda n, car: white(car[::-1]))
    assert "6 of 6 masks would fit the photo better upside down: car0.png" in out
    code, out, _ = check_set(lambda n, car: white(car[::-1] if n == 2 else car))
    assert "1 of 6 masks would fit the photo better upside down: car2.png" in out
    half_turn = dict(orientation=3, turn=lambda picture: picture.transpose(Image.Transpose.ROTATE_180))
    code, out, _ = check_set(lambda n, car: white(car[::-1, ::-1]), **half_turn)
    assert "6 of 6 masks would fit the photo as it was before its EXIF rotation: car0.png" in out
    code, out, covered = check_set(lambda n, car: white(car), **half_turn)
    assert "warning" not in out and is_right(covered)
    quarter_turn = dict(orientation=6, turn=lambda picture: picture.transpose(Image.Transpose.ROTATE_90))
    code, out, _ = check_set(lambda n, car: white(np.rot90(car)), **quarter_turn)
    assert code == 1 and "got 80x120. That is the photo's before its EXIF rotation" in out


def test_masks_of_one_level_are_said(check_set):
    _, out, covered = check_set(lambda n, car: np.full_like(car, 255, np.uint8))
    assert "6 of 6 masks hold car alone, no background: car0.png" in out and (covered[0][0] == 255).all()
    _, out, covered = check_set(lambda n, car: np.where((car | (n == 5)) & (n != 4), 200, 100).astype(np.uint8))
    assert "1 of 6 masks hold car alone, no background: car5.png" in out and (covered.pop(5)[0] == 255).all()
    assert "1 of 6 photos without a car" in out and not covered.pop(4)[0].any()  # though alone 100 looks like car
    assert is_right(covered)
    _, out, covered = check_set(lambda n, car: np.zeros_like(car, np.uint8))
    assert "no mask shows a car" in out and not covered[0][0].any()


def test_a_training_says_what_looks_wrong_each_time_it_starts(tmp_path, capsys):
    pairs = data.require_pairs(*draw_set(tmp_path, lambda n, car: white(~car)))
    assert "6 photos not named like Carvana's" in capsys.readouterr().err
    for _ in range(2):  # the second time from the cache
        cache = data.build_cache(pairs, 48, 32, tmp_path / "c")
        assert "warning: masks look inverted" in capsys.readouterr().err
    other = data.build_cache(pairs, 48, 32, tmp_path / "c", car_value=("0",))
    assert other.path != cache.path and np.array_equal(other.coverage, 255 - cache.coverage)
    assert other.fingerprint != cache.fingerprint and "inverted" not in capsys.readouterr().err


def test_unknown_pixels_are_marked_in_samples_and_at_full_resolution(tmp_path):
    left = np.indices((80, 120))[1] < 21  # a pixel of the 11th column at half the size is known by half
    pairs = data.require_pairs(*draw_set(tmp_path, lambda n, car: np.where(left, 128, white(car)).astype(np.uint8)))
    with pytest.raises(ValueError, match="got 3: .*--car-value 255.* If 128 is .*--unknown-value 128"):
        data.build_cache(pairs, 60, 40, tmp_path / "c", quiet=True)
    cache = data.build_cache(pairs, 60, 40, tmp_path / "c", quiet=True, unknown_value=("128",))
    image, coverage, known, row = CarDataset(cache)[0, 1]
    assert row == 1 and (known[:, :11] == 0).all() and (known[:, 11:] == 255).all()
    mask, known = cache.load_mask(1)
    assert np.array_equal(mask, draw_scene(1)[1]) and np.array_equal(~known, left)
    for epoch in range(8):  # the label moves with its photo
        image, coverage, known, _ = CarDataset(cache, augment=True, background=0.5)[epoch, 0]
        assert set(np.unique(known)) <= {0, 255} and 0.05 < (known == 0).mean() < 0.35
        assert image[(coverage > 250) & (known == 255)].mean() < 130


# ------------------------------------------------------------------------------------------------------------ cache


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(64, 95), (64, 96), (60, 95), (64, 95, 3), (300 * 16, 25), (16, 24)])
def test_an_area_average_is_the_mean_over_each_pixels_area(shape, kind):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(kind)

    def shares(n_from: int, n_to: int) -> np.ndarray:
        """How much of each new pixel each old one covers, (n_to, n_from)."""
        new, old = np.arange(n_to)[:, None] * n_from / n_to, np.arange(n_from)
        return np.clip(np.minimum(new + n_from / n_to, old + 1) - np.maximum(new, old), 0, None) * n_to / n_from

    expected = np.einsum("yh,hw...,xw->yx...", shares(shape[0], 16), picture.astype(np.float64), shares(shape[1], 24))
    average = area_average(picture, 24, 16)
    assert average.dtype == kind
    # Whole levels are rounded, where the rows are averaged first a quarter of a level early.
    np.testing.assert_allclose(average, expected, atol=0.76 if kind is np.uint8 else 1e-3)


def test_the_cache_holds_photos_and_the_share_of_each_pixel_that_is_car_and_is_built_once(pairs, tmp_path):
    cache = data.build_cache(pairs, 48, 32, tmp_path, quiet=True)
    image, coverage, _, facts = data.read_pair(pairs[5], 48, 32)
    assert np.array_equal(cache.images[5], image) and np.array_equal(cache.coverage[5], coverage)
    mask, known = cache.load_mask(5)
    assert facts.size == mask.shape == (64, 96) and np.array_equal(coverage, area_average(mask * np.uint8(255), 48, 32))
    assert cache.known is known is None and (CarDataset(cache)[0, 0][2] == 255).all()
    stamp = (cache.path / "images.npy").stat().st_mtime_ns
    assert data.build_cache(pairs, 48, 32, tmp_path, quiet=True).path == cache.path
    assert (cache.path / "images.npy").stat().st_mtime_ns == stamp


def test_a_changed_file_a_new_size_and_other_photos_get_caches_of_their_own(tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    pairs = data.require_pairs(tmp_path / "set/train", tmp_path / "set/train_masks")
    build = lambda pairs, width: data.build_cache(pairs, width, 32, tmp_path / "c", quiet=True).path
    paths = {build(pairs, 48), build(pairs, 32), build(pairs[1:], 48)}
    save(pairs[0].image_path, photo(96, 64))
    assert len(paths | {build(pairs, 48)}) == 4


# ---------------------------------------------------------------------------------------------------------- batches


def test_an_epoch_shows_each_photo_once_in_an_order_of_its_own_in_batches_of_nearly_equal_size():
    orders = []
    for seed, epoch in ((0, 1), (0, 2), (1, 1)):
        batches = EpochBatches(range(100, 121), 8, seed, shuffle=True)
        batches.start(epoch)
        rows = [[row for _, row in batch] for batch in batches]
        assert [len(batch) for batch in rows] == [7, 7, 7] == [batches.batch_length(n) for n in range(3)]
        orders.append(sum(rows, []))
        assert sorted(orders[-1]) == list(range(100, 121)) and orders.count(orders[-1]) == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_see_what_one_alone_would_see(world_size):
    alone = EpochBatches(range(23), 6, seed=1, shuffle=True)
    ranks = range(world_size)
    shares = [EpochBatches(range(23), 6, seed=1, shuffle=True, rank=rank, world_size=world_size) for rank in ranks]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert sum(parts, []) == whole


def test_more_processes_than_photos_in_a_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size must give each of 4 processes a photo, got 2"):
        EpochBatches(range(9), 2, world_size=4)


def test_samples_do_not_depend_on_the_number_of_workers(pairs, tmp_path):
    cache = data.build_cache(pairs, 48, 32, tmp_path, quiet=True)

    def samples(workers):
        batches = EpochBatches(range(12), 4, seed=5, shuffle=True)
        batches.start(epoch=3)
        loader = data.make_loader(CarDataset(cache, 5, augment=True, background=0.5), batches, workers)
        return [torch.cat([images.flatten(), coverage.flatten()]) for images, coverage, *_ in loader]

    for alone, shared in zip(samples(0), samples(2), strict=True):
        assert torch.equal(alone, shared)


def test_augmentation_differs_by_epoch_and_photo_and_keeps_photo_and_mask_together(pairs, tmp_path):
    cache = data.build_cache(pairs, 48, 32, tmp_path, quiet=True)
    dataset = CarDataset(cache, 0, augment=True)
    assert not np.array_equal(dataset[0, 0][0], dataset[1, 0][0])
    for epoch in range(8):
        image, coverage, *_ = dataset[epoch, 0]
        assert image.dtype == coverage.dtype == np.uint8 and image.shape == (32, 48, 3)
        # The drawn cars are brighter than their background, so what the mask covers must be bright.
        assert image[coverage > 200].mean() > image[coverage < 50].mean() + 20


def test_a_photo_is_flipped_whether_or_not_its_colours_change(tmp_path):
    grey = np.repeat(np.linspace(200, 60, 48, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)  # falls
    save(tmp_path / "train/car.png", grey)
    save(tmp_path / "masks/car.png", np.eye(32, 48, dtype=np.uint8) * 255)
    pair = data.require_pairs(tmp_path / "train", tmp_path / "masks")
    dataset = CarDataset(data.build_cache(pair, 48, 32, tmp_path / "cache", quiet=True), augment=True)
    seen = set()
    for epoch in range(64):
        image = dataset[epoch, 0][0].astype(float)
        is_flipped = image[:, :24].mean() < image[:, 24:].mean()
        is_coloured = np.ptp(image.mean(axis=(0, 1))) > 1
        seen.add((bool(is_flipped), bool(is_coloured)))
    assert len(seen) == 4


def test_a_replaced_background_leaves_the_car_as_it_was():
    image, coverage = photo(), mask()
    changes = []
    for seed in range(40):
        before = image.copy()
        replaced = replace_background(image, coverage, np.random.default_rng(seed))
        assert np.array_equal(image, before) and replaced.dtype == np.uint8
        assert np.array_equal(replaced[coverage == 255], image[coverage == 255])
        changes.append((replaced[coverage == 0] != image[coverage == 0]).any(axis=-1).mean())
    # Some get a whole new wall, some keep theirs and only letters and boxes are put on it.
    assert 8 <= sum(change > 0.9 for change in changes) <= 32 and np.mean(changes) > 0.5


def test_colour_statistics_are_those_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    mean, std = data.colour_statistics(images, range(5))
    pixels = images.reshape(-1, 3) / 255
    assert np.allclose(mean, pixels.mean(axis=0)) and np.allclose(std, pixels.std(axis=0))


# --------------------------------------------------------------------------------------------------- check, download


def test_check_reports_counts_and_passes_good_files(tiny_set, capsys):
    assert data.check(tiny_set / "train", tiny_set / "train_masks") == 0
    out = capsys.readouterr().out
    assert "12 of 3 cars" in out and "96x64, 12 pairs" in out and "to mend:  0" in out


def test_help_of_check_states_the_naming_rule_and_explains_each_option(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(data.check, args=["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "A photo x.jpg belongs to the mask x_mask.png" in words
    assert "Folder of photos. (default: data/train)" in words and "class numbers (1) or colours (#800000)" in words


def test_a_missing_folder_is_one_sentence_and_a_traceback_for_those_who_want_it(tmp_path, run_script):
    command = "data.py", "check", "--train-image-dir", tmp_path / "no", "--train-mask-dir", tmp_path
    result = run_script(*command)
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*/no is not a folder.*\n", result.stderr)
    assert "Traceback" in run_script(*command, "--debug").stderr


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """A stand-in for kagglehub that serves two small archives, as Kaggle lays them out."""
    monkeypatch.setattr(download, "N_COMPETITION_PAIRS", 3)
    module = types.ModuleType("kagglehub")
    module.asked = []

    def competition_download(competition, path):
        module.asked.append((competition, path))
        folder, ending = path.removesuffix(".zip"), "_mask.gif" if "masks" in path else ".jpg"
        with zipfile.ZipFile(tmp_path / path, "w") as archive:
            for n in range(3):
                archive.writestr(f"{folder}/{n:012x}_01{ending}", b"content")
            archive.writestr(f"__MACOSX/{folder}/._{0:012x}_01{ending}", b"junk")
        return str(tmp_path / path)

    module.competition_download = competition_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def count_files(folder) -> list[int]:
    return [len(list((folder / name).iterdir())) for name in ("train", "train_masks")]


def test_download_brings_the_two_archives_once_and_counts_the_files(kaggle, tmp_path, monkeypatch):
    for _ in range(2):  # what is there is not fetched again
        assert download.download(tmp_path / "data") == 0
        assert kaggle.asked == [(download.COMPETITION, "train.zip"), (download.COMPETITION, "train_masks.zip")]
    assert count_files(tmp_path / "data") == [3, 3]
    monkeypatch.setattr(download, "N_COMPETITION_PAIRS", 4)
    with pytest.raises(RuntimeError, match="train must hold 4 files, got 3"):
        download.download(tmp_path / "data")


def test_download_takes_zips_or_folders_that_a_notebook_on_kaggle_has_as_input(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "input")
    (tmp_path / "input/zips" / download.COMPETITION).mkdir(parents=True)
    archive = kaggle.competition_download(download.COMPETITION, "train.zip")
    shutil.move(archive, tmp_path / "input/zips" / download.COMPETITION)
    for n in range(3):
        path = tmp_path / "input/folders/competitions" / download.COMPETITION / f"train_masks/{n:012x}_01_mask.gif"
        save(path, photo())
    kaggle.asked.clear()
    assert download.download(tmp_path / "data") == 0
    assert kaggle.asked == [] and count_files(tmp_path / "data") == [3, 3]


def test_a_download_that_kaggle_refuses_says_why_and_what_to_click(kaggle, tmp_path):
    def refuse(competition, path):
        raise OSError("403 Client Error")

    kaggle.competition_download = refuse
    with pytest.raises(RuntimeError, match="403 Client Error.*rules at https://www.kaggle.com/c/carvana.*make a token"):
        download.download(tmp_path / "data")


def test_an_archive_that_is_cut_short_leaves_what_was_there(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/old.jpg").touch()
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("train/new.jpg", bytes(99))
    content = (tmp_path / "train.zip").read_bytes()
    (tmp_path / "train.zip").write_bytes(content[:-30])
    with pytest.raises(RuntimeError, match="train.zip is damaged .* Delete it and try again"):
        download.extract(tmp_path / "train.zip", tmp_path / "data/train")
    assert [path.name for path in (tmp_path / "data").rglob("*.*")] == ["old.jpg"]
