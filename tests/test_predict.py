"""The prediction command and its Python interface, with a network made by hand that takes red for car."""

import csv
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import predict
import pytest
from carvana.files import run_command
from carvana.pictures import encode_runs
from carvana.rows import append_row, start_table
from conftest import SCRIPT_DIR, kill_when
from PIL import Image
from predict import Settings, find_photos
from red_network import GREEN, RED, draw_photo, is_red, load, save_photo, save_red_weights


@pytest.fixture(scope="session")
def red_weights(tmp_path_factory) -> Path:
    return save_red_weights(tmp_path_factory.mktemp("weights") / "red.safetensors")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with photos in it and in a sub-folder."""
    save_photo(tmp_path / "photos/one.jpg", 180, 121)
    save_photo(tmp_path / "photos/two.png", 90, 140)
    save_photo(tmp_path / "photos/more/three.webp", 333, 100)
    return tmp_path / "photos"


@pytest.fixture
def run_predict(red_weights, tmp_path, monkeypatch, capsys):
    """Run the command in this process, where PyTorch is loaded; return a CompletedProcess, output as text."""

    def run(*args, output=tmp_path / "out", weights=red_weights, env={}):
        args = [*map(str, args), "--weights", str(weights), "--output", str(output), "--device", "cpu"]
        capsys.readouterr()
        with monkeypatch.context() as patch, warnings.catch_warnings(), pytest.raises(SystemExit) as exit:
            for name, value in env.items():
                patch.setenv(name, value)
            run_command(predict.main, args)
        return subprocess.CompletedProcess(args, exit.value.code, *capsys.readouterr())

    return run


TABLE = {"predictions.csv", "predictions.json"}


def read_table(path: Path) -> dict[str, dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["photo"]: row for row in csv.DictReader(file)}


def files_of(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix() for path in files}


# ---------------------------------------------------------------------------------------------------------- command


def test_a_folder_becomes_upright_masks_cut_outs_and_overlays_at_full_resolution(run_predict, photos, tmp_path):
    upright = load(photos / "two.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held sideways
    Image.fromarray(np.rot90(upright)).save(photos / "two.png", exif=exif)
    result = run_predict(photos)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    endings = ("_mask.png", "_cutout.png", "_overlay.jpg")
    names = {"one": "one.jpg", "two": "two.png", "more/three": "more/three.webp"}
    assert files_of(out) == {name + ending for name in names for ending in endings} | TABLE
    for name, file in names.items():
        photo = upright if name == "two" else load(photos / file)
        mask = load(out / f"{name}_mask.png")
        assert mask.shape == photo.shape[:2] and set(np.unique(mask)) == {0, 255}
        assert ((mask > 0) != is_red(photo)).mean() < 0.03
        cut = load(out / f"{name}_cutout.png")
        assert cut.shape == (*mask.shape, 4)
        middle = tuple(side // 2 for side in mask.shape)
        assert cut[middle][3] == 255 and cut[2, 2, 3] == 0
        assert np.array_equal(cut[middle][:3], photo[middle])
        tint = np.abs(load(out / f"{name}_overlay.jpg").astype(int) - photo).max(axis=2)
        assert tint[middle] > 50 and tint[2, 2] < 10
    table = read_table(out / "predictions.csv")
    assert set(table) == set(names)
    mask = load(out / "one_mask.png") > 0
    assert float(table["one"]["car_share"]) == pytest.approx(mask.mean(), abs=1e-4)
    assert "3 photos predicted, 0 failed" in result.stdout


def test_cut_outs_are_cropped_to_the_main_car_and_written_as_webp_with_a_shadow(run_predict, tmp_path):
    photo = draw_photo(300, 200)
    photo[4:14, 4:14] = RED  # a second car, far away
    Image.fromarray(photo).save(tmp_path / "car.png")
    flags = ["--shadow", "--main-car", "--format", "webp", "--background", "white", "--crop", "4:3"]
    assert run_predict(tmp_path / "car.png", *flags).returncode == 0
    mask, cut = load(tmp_path / "out/car_mask.png"), load(tmp_path / "out/car_cutout.webp")
    assert mask.shape == (200, 300) and not mask[:20, :20].any() and mask[100, 150] == 255
    assert cut.shape[1] / cut.shape[0] == pytest.approx(4 / 3, abs=0.02) and cut.shape[1] < 300
    car, shadow = cut[..., 3] == 255, (cut[..., 3] > 60) & (cut[..., :3].max(2) < 60)
    assert np.abs(np.median(cut[car], axis=0) - (*RED, 255)).max() < 9 and shadow.sum() > 100
    on_white = cut[..., :3] * (cut[..., 3:] / 255) + 255 - cut[..., 3:]
    assert np.abs(load(tmp_path / "out/car_background.jpg") - on_white).mean() < 5


def test_what_is_there_is_kept_and_what_is_missing_is_made(run_predict, photos, tmp_path):
    out = tmp_path / "out"
    assert run_predict(photos).returncode == 0
    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out) - TABLE}
    (out / "one_cutout.png").unlink()
    result = run_predict(photos)
    assert "1 photo predicted, 2 there already, 0 failed" in result.stdout
    changed = {name for name, time in before.items() if (out / name).stat().st_mtime_ns != time}
    assert changed == {"one_mask.png", "one_cutout.png", "one_overlay.jpg"}
    assert len(read_table(out / "predictions.csv")) == 3

    # A photo that changed since is predicted anew.
    save_photo(photos / "two.png", 50, 50)
    assert "1 photo predicted" in run_predict(photos).stdout
    assert load(out / "two_mask.png").shape == (50, 50)

    assert "3 photos predicted, 0 failed" in run_predict(photos, "--overwrite").stdout
    assert len(read_table(out / "predictions.csv")) == 3


def test_the_threshold_is_the_weights_own_unless_given_and_results_of_two_are_not_mixed(run_predict, photos, tmp_path):
    assert run_predict(photos, "--outputs", "mask").returncode == 0
    own = load(tmp_path / "out/one_mask.png")
    result = run_predict(photos, "--outputs", "mask", "--threshold", "0.7")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: threshold must be 0.4, as for the results in ")
    # Made anew with another threshold, one photo's row does not stand beside those of the old one: all are made anew.
    assert run_predict(photos / "one.jpg", "--outputs", "mask", "--threshold", "0.7", "--overwrite").returncode == 0
    assert set(read_table(tmp_path / "out/predictions.csv")) == {"one"}
    given = load(tmp_path / "out/one_mask.png")
    assert not (given > own).any() and (own > given).any()
    result = run_predict(photos, "--outputs", "mask", "--threshold", "0.7")
    assert "2 photos predicted, 1 there already" in result.stdout
    # More outputs and a background go with what is there.
    assert run_predict(photos, "--threshold", "0.7", "--background", photos / "two.png").returncode == 0
    assert (tmp_path / "out/one_background.jpg").exists()


def test_killed_run_goes_on_and_ends_with_the_same_files(run_predict, red_weights, tmp_path):
    folder = tmp_path / "many"
    for number in range(40):
        save_photo(folder / f"{number:02d}.jpg", 300 + number, 200)
    options = ["--weights", red_weights, "--output", tmp_path / "out", "--device", "cpu"]
    is_time = lambda: len(list((tmp_path / "out").glob("*_mask.png"))) >= 3
    kill_when(is_time, [sys.executable, SCRIPT_DIR / "predict.py", folder, *options])
    n_whole = len(read_table(tmp_path / "out/predictions.csv"))
    assert n_whole < 40  # or there would be nothing to go on with
    result = run_predict(folder)
    assert result.returncode == 0 and f"{40 - n_whole} photo" in result.stdout
    assert run_predict(folder, output=tmp_path / "whole").returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    for name in files_of(tmp_path / "whole") - TABLE:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_table(tmp_path / "out/predictions.csv") == read_table(tmp_path / "whole/predictions.csv")


def test_broken_photos_are_named_and_the_others_done(run_predict, photos, tmp_path):
    (photos / "text.jpg").write_text("not a photo")
    (photos / "cut.jpg").write_bytes((photos / "one.jpg").read_bytes()[:2000])
    (photos / "empty.png").touch()
    result = run_predict(photos)
    assert result.returncode == 1
    failures = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 3 and "Traceback" not in result.stderr
    for name in ("text.jpg", "cut.jpg", "empty.png"):
        assert sum(name in line for line in failures) == 1
    assert len(read_table(tmp_path / "out/predictions.csv")) == 3
    assert "3 photos predicted, 3 failed" in result.stdout


def test_empty_full_and_undecided_predictions_are_warned_of(run_predict, tmp_path):
    (tmp_path / "in").mkdir()
    for name, colour in (("nothing", GREEN), ("everything", RED), ("brown", GREEN)):
        photo = Image.new("RGB", (60, 40), colour)
        if name == "brown":
            photo.paste((140, 38, 40), (0, 0, 30, 40))  # logit about 0 in one half
        photo.save(tmp_path / f"in/{name}.png")
    result = run_predict(tmp_path / "in", "--background", "white")
    assert result.returncode == 0
    assert "warning: nothing: no car found (car 0.0%" in result.stderr
    assert "warning: everything: all car, no background found (car 100.0%" in result.stderr
    assert "warning: brown: the mask is probably wrong" in result.stderr
    assert read_table(tmp_path / "out/predictions.csv")["nothing"]["warning"] == "no car found"
    assert load(tmp_path / "out/nothing_cutout.png").max() == 0


def test_unusual_names_work_and_stay_inside_the_output(run_predict, tmp_path):
    folder = tmp_path / "in"
    names = ["new\nline", 'quo"te, comma', "машина 車", " space ", "a..", "-dash", "a.b.c", os.fsdecode(b"caf\xe9")]
    for name in names:
        save_photo(folder / f"{name}.jpg")
    result = run_predict(folder)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("*_mask.png")} == {f"{name}_mask.png" for name in names}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert "8 there already" in run_predict(folder).stdout
    assert len(read_table(tmp_path / "out/predictions.csv")) == 8
    (folder / "new\nline.jpg").write_text("broken")
    error = run_predict(folder).stderr
    assert error.count("failed: ") == error.count("\n") == 1


def test_two_photos_of_one_name_do_not_overwrite_each_other(run_predict, photos, tmp_path):
    save_photo(photos / "One.png")
    result = run_predict(photos)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in ("one.jpg", "One.png", "would get results of one name"))
    assert not (tmp_path / "out").exists()


def test_a_photo_given_twice_is_done_once_and_hidden_files_are_left_out(photos):
    (photos / ".hidden.jpg").touch()
    (photos / ".folder").mkdir()
    (photos / ".folder/photo.jpg").touch()
    (photos / "notes.txt").touch()
    found = find_photos(Settings((photos, photos / "one.jpg")))
    assert [photo.name for photo in found] == ["one", "two", "more/three"]


def test_what_is_not_read_is_counted_and_named_once_and_jfif_and_jpe_are_jpeg(run_predict, tmp_path):
    folder = tmp_path / "phone"
    for name in ("IMG_0001.JPG", "download.jfif", "photo.jpe"):
        save_photo(folder / name)
    for name in ("IMG_0002.HEIC", "shop.avif", "IMG_0003.MOV"):
        (folder / name).write_bytes(bytes(500))
    result = run_predict(folder, "--outputs", "mask")
    assert result.returncode == 0 and "3 photos predicted" in result.stdout
    notes = [line for line in result.stderr.splitlines() if "not read" in line]
    assert len(notes) == 1 and "3 files not read: IMG_0002.HEIC, IMG_0003.MOV, shop.avif" in notes[0]
    for name in ("IMG_0001.JPG", "download.jfif", "photo.jpe"):
        (folder / name).unlink()
    result = run_predict(folder)
    assert result.returncode == 1 and "must hold photos, got none. 3 files not read: IMG_0002.HEIC" in result.stderr


def test_results_are_never_photos_again_wherever_they_lie(run_predict, photos, tmp_path):
    result = run_predict(photos, output=photos)
    assert result.returncode == 1 and "output must be another folder than that of the photos" in result.stderr
    assert run_predict(photos, "--background", "white", output=photos / "old").returncode == 0
    again = run_predict(photos, "--background", "white", output=photos / "old")
    assert "0 photos predicted, 3 there already" in again.stdout
    for path in (photos / "old").glob("one_*"):
        path.rename(photos / path.name)  # a user moves results beside the photos
    save_photo(photos / "epoch_001.png")  # what a training draws
    result = run_predict(photos, photos / "one_cutout.png", "--outputs", "mask", output=tmp_path / "new")
    assert "3 photos predicted" in result.stdout
    assert "files left out, named like results of this program" in result.stderr
    assert files_of(tmp_path / "new") == {"one_mask.png", "two_mask.png", "more/three_mask.png"} | TABLE
    result = run_predict(photos / "one_mask.png")
    assert result.returncode == 1 and "Rename what is a photo" in result.stderr


def test_a_submission_names_files_alone_and_says_at_once_what_kaggle_would_refuse(run_predict, tmp_path):
    folder, path = tmp_path / "test/test", tmp_path / "s.csv"  # as test.zip unpacks
    for view in (1, 2):
        save_photo(folder / f"0123456789ab_{view:02d}.jpg")
    error = run_predict(tmp_path / "test", "--submission", path).stderr
    assert [row[0] for row in read_submission(path)[1:]] == ["0123456789ab_01.jpg", "0123456789ab_02.jpg"]
    assert "warning: a submission must have 100,064 photos, got 2." in error and "Carvana's" not in error
    save_photo(folder / "mine.jpg")
    assert "1 photo not named like Carvana's" in run_predict(tmp_path / "test", "--submission", path).stderr
    save_photo(tmp_path / "test/mine.jpg")
    result = run_predict(tmp_path / "test", "--submission", tmp_path / "other.csv")
    assert result.returncode == 1 and "would get results of one name" in result.stderr
    assert not (tmp_path / "other.csv").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        ((), "photos must name a photo or a folder, got none"),
        (("missing.jpg",), "missing.jpg does not exist"),
        ((".", "--threshold", "1.5"), "threshold must be between 0 and 1, got 1.5"),
        ((".", "--crop", "4/3"), "crop must be width:height such as 4:3, got 4/3."),
        ((".", "--background", "whit"), "background must be a colour such as white or #e0e0e0, or a photo's path"),
        ((".", "--background", "../text.jpg"), "text.jpg must be a JPEG, PNG"),
        ((".",), "must hold photos"),
        (("../photos",), "none.safetensors does not exist"),
    ],
)
def test_mistakes_are_one_line(run_predict, photos, tmp_path, monkeypatch, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no photo")
    monkeypatch.chdir(tmp_path / "empty")
    result = run_predict(*args, weights="none.safetensors")  # they come before the network, which takes seconds to load
    assert result.returncode in (1, 2) and message in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_stops_the_run_with_one_line(photos, red_weights, tmp_path, monkeypatch, capsys):
    real_open = open

    def open_full(file, *args, **keywords):
        return real_open("/dev/full" if "_mask.png." in str(file) else file, *args, **keywords)

    monkeypatch.setattr("builtins.open", open_full)
    with pytest.raises(OSError, match="one_mask.png could not be written .No space left on device."):
        predict.predict(Settings((photos,), tmp_path / "out", weights=red_weights, device="cpu"))


def test_processes_of_torchrun_share_the_photos(run_predict, photos, tmp_path):
    results = [
        run_predict(photos, "--outputs", "mask", env=dict(RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2"))
        for rank in (0, 1)
    ]
    assert [result.stdout.split()[0] for result in results] == ["2", "1"]
    assert len(read_table(tmp_path / "out/predictions.csv")) == 3
    assert "0 photos predicted, 3 there already" in run_predict(photos, "--outputs", "mask").stdout


def test_photos_are_read_a_few_ahead_and_large_ones_worked_on_a_few_at_a_time():
    costs, running, seen, taken = [4, 4, 4, 20, 4, *[0] * 30], set(), [], []

    def work(item):
        running.add(item)
        seen.append(sum(costs[other] for other in running))
        time.sleep(0.02)
        running.discard(item)
        return item

    def items():
        for item in range(len(costs)):
            taken.append(item)
            yield item

    for number, result in enumerate(predict.map_bounded(work, items(), 4, lambda item: costs[item], 10)):
        assert result == number and len(taken) <= number + 10
    assert max(seen) == 20 and all(total <= 10 or total == 20 for total in seen)


# ------------------------------------------------------------------------------------------------------- submission


def test_run_lengths_are_kaggles():
    mask = np.zeros((1280, 1918), bool)
    mask[0, 0] = mask[0, 1917] = mask[1, 0] = mask[1279, 1917] = True  # a run goes on into the next line
    assert encode_runs(mask) == f"1 1 1918 2 {1918 * 1280} 1"
    assert encode_runs(np.zeros((3, 4), bool)) == ""
    assert encode_runs(np.ones((3, 4), bool)) == "1 12"


def decode_runs(text: str, height: int, width: int) -> np.ndarray:
    mask, numbers = np.zeros(height * width, bool), np.array(text.split(), int)
    for start, length in numbers.reshape(-1, 2):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(height, width)


def read_submission(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_submission_goes_on_after_a_cut_line_and_fits_the_masks(run_predict, tmp_path):
    folder = tmp_path / "test"
    for number in range(5):
        save_photo(folder / f"car_{number}.jpg", 100 + number, 70)
    path = tmp_path / "submission.csv"
    assert run_predict(folder, "--submission", path).returncode == 0
    assert not (tmp_path / "out").exists()
    rows = read_submission(path)
    assert rows[0] == ["img", "rle_mask"]
    assert [row[0] for row in rows[1:]] == [f"car_{number}.jpg" for number in range(5)]
    assert run_predict(folder, "--outputs", "mask").returncode == 0
    for number, (_, runs) in enumerate(rows[1:]):
        mask = load(tmp_path / f"out/car_{number}_mask.png") > 0
        assert np.array_equal(decode_runs(runs, *mask.shape), mask)

    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.7)])
    result = run_predict(folder, "--submission", path)
    assert "there already" in result.stdout and path.read_bytes() == whole
    assert "0 photos predicted, 5 there already" in run_predict(folder, "--submission", path).stdout
    result = run_predict(folder, "--submission", path, "--threshold", "0.7")
    assert result.returncode == 1 and "threshold must be 0.4" in result.stderr
    settings = path.with_suffix(".json").read_bytes()
    path.write_text("something,else\n1,2")
    result = run_predict(folder, "--submission", path)
    assert result.returncode == 1 and "must begin with img,rle_mask, got 'something,else'" in result.stderr
    assert path.read_text() == "something,else\n1,2" and path.with_suffix(".json").read_bytes() == settings
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    result = run_predict(folder, "--submission", tmp_path / "mine.csv", "--overwrite")
    assert result.returncode == 1 and "mine.json must hold the settings of" in result.stderr
    assert (tmp_path / "mine.json").read_text() == '{"mine": 1}' and not (tmp_path / "mine.csv").exists()


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    path, header = tmp_path / "t.csv", ["img", "rle_mask"]
    start_table(path, header, {}, lambda name: True, False)
    with open(path, "a") as file:
        for number in range(3000):
            file.write(f"{number}.jpg,{'123456 789 ' * 2000}\n")  # 66 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(start_table(path, header, {}, lambda name: name != "7.jpg", False)) == 2999
    append_row(path, ["7.jpg", "1 2"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
