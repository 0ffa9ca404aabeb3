"""A run that is killed, stopped, or has no room left loses nothing: resumed, it ends like one that nobody touched."""

import dataclasses
import gc
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import extra
import pytest
import torch
import train
from carvana.weights import load_network, read_tensors, write_tensors
from conftest import PROJECT_DIR, SCRIPT_DIR
from tiny import tiny_run
from unet import UNet

import data

sys.path.append(str(PROJECT_DIR / "benchmarks"))
import soak_resume


def read_last(folder: Path) -> tuple[dict, dict]:
    """Tensors and header of the last checkpoint of a run below `folder`."""
    return read_tensors(folder / "checkpoints" / extra.LAST)


def seed_of(checkpoint_dir: Path) -> int:
    return read_tensors(checkpoint_dir / extra.LAST)[1]["settings"]["seed"]


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("precision, n_kills", [("float32", 22), ("fp16", 4)])
def test_runs_killed_at_every_kind_of_moment_end_bitwise_identical(precision, n_kills):
    """Kill trainings in steps, saves, validation and from outside; compare all files with an untouched run's."""
    command = [sys.executable, str(PROJECT_DIR / "benchmarks" / "soak_resume.py"), "--kills", str(n_kills)]
    result = subprocess.run([*command, "--precision", precision], capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr + result.stdout
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    struck = {key: int(value) for key, value in lines.items() if key.startswith("struck")}
    assert lines["mismatches"] == "0" and sum(struck.values()) == n_kills and len(struck) == 11
    assert precision == "fp16" or min(struck.values()) == n_kills // 11


@pytest.fixture(scope="module")
def finished(tiny_set, tmp_path_factory) -> tuple[train.Config, Path]:
    """A finished run of two epochs, saved after each step; its folder."""
    folder = tmp_path_factory.mktemp("finished")
    changes = dict(base_width=2, batch_size=4, warmup=0.2, ema_decay=0.9, checkpoint_minutes=0)
    config = train.Config(**tiny_run(tiny_set, folder, **changes))
    train.train(config)
    return config, folder


def in_folder(config: train.Config, folder: Path, **changes) -> train.Config:
    places = dict(checkpoint_dir=folder / "checkpoints", prediction_dir=folder / "predictions")
    return dataclasses.replace(config, **places, **changes)


@pytest.fixture
def copied(finished, tmp_path) -> tuple[train.Config, Path]:
    """A copy of the finished run, to be damaged and resumed; its folder."""
    config, folder = finished
    shutil.copytree(folder, tmp_path / "copy")
    return in_folder(config, tmp_path / "copy", load_model=True), tmp_path / "copy"


def test_the_comparison_sees_a_single_bit(finished, copied):
    _, folder = copied
    assert soak_resume.compare_runs(folder, finished[1]) == []
    tensors, header = read_last(folder)
    tensors["optimizer/head.weight/exp_avg"].view(torch.int32)[0] ^= 1
    header["progress"]["best_dice"] += 1e-9
    write_tensors(folder / "checkpoints" / extra.LAST, tensors, **header)
    flip_bit(folder / "predictions" / "epoch_002.png", 0.5)
    (folder / "predictions" / "worst.png").unlink()
    assert soak_resume.compare_runs(folder, finished[1]) == [
        "the file predictions/worst.png",
        "checkpoints/last.safetensors/optimizer/head.weight/exp_avg",
        "checkpoints/last.safetensors/progress/best_dice",
        "predictions/epoch_002.png",
    ]


def flip_bit(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped in the header": lambda path: flip_bit(path, 0.05),
    "flipped in a tensor": lambda path: flip_bit(path, 0.9),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_costs_steps_but_not_a_bit(finished, copied, capsys, damage):
    config, folder = copied
    DAMAGES[damage](folder / "checkpoints" / extra.LAST)
    train.train(config)
    said = r"last\.safetensors (is damaged|does not exist).* Resuming from .*last\.previous\.safetensors"
    assert re.search(said, capsys.readouterr().err)
    assert soak_resume.compare_runs(folder, finished[1]) == []


def test_two_damaged_checkpoints_or_weights_alone_are_refused(copied):
    config, folder = copied
    flip_bit(folder / "checkpoints" / extra.PREVIOUS, 0.5)
    shutil.copy(folder / "checkpoints" / extra.BEST, folder / "checkpoints" / extra.LAST)
    with pytest.raises(ValueError, match="does not hold a training. Use --start-from"):
        train.train(config)
    flip_bit(folder / "checkpoints" / extra.LAST, 0.5)
    with pytest.raises(ValueError, match="last.previous.safetensors is damaged"):
        train.train(config)


def test_lost_best_weights_are_made_anew(finished, copied):
    config, folder = copied
    (folder / "checkpoints" / extra.BEST).unlink()
    train.train(config)
    tensors, _ = read_last(folder)
    network, _ = load_network(folder / "checkpoints" / extra.BEST)
    torch.testing.assert_close(network.head.bias, tensors["average/head.bias"])


def test_workers_and_checkpoint_times_change_no_bit(finished, tmp_path):
    config, folder = finished
    train.train(in_folder(config, tmp_path, workers=2, checkpoint_minutes=10))
    found = soak_resume.compare_runs(tmp_path, folder)
    # What differs is the two settings themselves, and the folder of the cache.
    assert all(what.endswith(("/workers", "/checkpoint_minutes")) or "the file cache/" in what for what in found), found


def test_no_data_worker_and_no_network_outlives_the_training(finished, tmp_path):
    count_networks = lambda: sum(type(thing) is UNet for thing in gc.get_objects())
    config, _ = finished
    gc.collect()  # what other tests left
    before = count_networks()
    train.train(in_folder(config, tmp_path, workers=2, epochs=1))
    assert not [process for process in multiprocessing.active_children() if process.daemon]  # as DataLoader's are
    gc.collect()
    assert count_networks() == before


def test_an_earlier_run_is_set_aside_whole_and_none_is_deleted_for_another(finished, tmp_path):
    config, folder = finished
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    for seed in (1, 2):
        shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints", dirs_exist_ok=True)
        train.train(in_folder(config, tmp_path, epochs=1, seed=seed))
    assert {path.name for path in (tmp_path / "checkpoints-1").iterdir()} == names
    assert [seed_of(tmp_path / f"checkpoints{number}") for number in ("", "-1", "-2")] == [2, 0, 0]


def test_a_mistake_in_the_settings_does_not_touch_the_earlier_run(copied, tmp_path):
    config, folder = copied
    with pytest.raises(FileNotFoundError):
        train.train(dataclasses.replace(config, load_model=False, train_image_dir=tmp_path / "nowhere"))
    assert (folder / "checkpoints" / extra.LAST).exists() and not (folder / "checkpoints-1").exists()


def test_settings_that_may_change_take_effect_and_are_printed(copied, capsys):
    config, folder = copied
    train.train(dataclasses.replace(config, epochs=3, weight_decay=0.5))
    out = capsys.readouterr().out
    assert "epochs, from 2 to 3" in out and "weight_decay, from 0.01 to 0.5" in out
    assert read_last(folder)[1]["progress"]["epoch"] == 3


@pytest.mark.parametrize(
    "setting, value",
    [("base_width", 4), ("batch_size", 2), ("seed", 1), ("image_width", 64), ("validation_share", 0.67)],
)
def test_settings_that_would_change_the_meaning_of_the_place_are_refused(copied, setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be .*, as when .*last.safetensors was saved, got {value}"):
        train.train(dataclasses.replace(copied[0], **{setting: value}))


# ------------------------------------------------------------------------------------------------------------ signals


class Script:
    """A train.py that runs in a group of processes of its own, and whose output can be waited for."""

    def __init__(self, args: list[str], before: str):
        code = f"{before}\nimport runpy\nrunpy.run_path({str(SCRIPT_DIR / 'train.py')!r}, run_name='__main__')"
        paths = os.pathsep.join([str(SCRIPT_DIR), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": paths}
        outputs = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        command = [sys.executable, "-c", code, *args]
        self.process = subprocess.Popen(command, **outputs, env=environment, start_new_session=True)
        self.output = ""

    def wait_for(self, text: str) -> None:
        while text not in self.output:
            letter = self.process.stdout.read(1)
            assert letter, f"it ended before {text!r}: {self.output}"
            self.output += letter

    def end(self) -> int:
        self.output += self.process.communicate(timeout=120)[0]
        return self.process.returncode


SLOW_STEPS = """
import time, torch
real_step = torch.optim.AdamW.step
def step(self, *args, **keywords):
    print("stepping", flush=True)
    time.sleep(1)
    return real_step(self, *args, **keywords)
torch.optim.AdamW.step = step
"""
SLOW_READING = """
import time
from PIL import Image
real_open = Image.open
def slow_open(*args, **keywords):
    print("reading", flush=True)
    time.sleep(0.5)
    return real_open(*args, **keywords)
Image.open = slow_open
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_after_the_step(tiny_args, tmp_path, number):
    # Two data workers: Ctrl-C and `timeout` signal the whole group, and the workers must not take the run down
    # before it has saved.
    script = Script([*tiny_args, "--workers", "2"], before=SLOW_STEPS)
    script.wait_for("stepping")
    os.killpg(script.process.pid, number)
    assert script.end() == 128 + number, script.output
    assert f"stopped by {number.name}; --load-model resumes" in script.output and "Traceback" not in script.output
    assert read_last(tmp_path)[1]["progress"]["batch"] == 1


def test_a_second_signal_leaves_at_once_and_what_was_saved_stays(tiny_args, tmp_path, run_script):
    assert run_script("train.py", *tiny_args, "--epochs", "1").returncode == 0
    saved = (tmp_path / "checkpoints" / extra.LAST).read_bytes()
    script = Script([*tiny_args, "--load-model", "--workers", "2"], before=SLOW_STEPS.replace("sleep(1)", "sleep(600)"))
    script.wait_for("stepping")
    os.killpg(script.process.pid, signal.SIGINT)
    time.sleep(0.5)
    script.process.send_signal(signal.SIGINT)
    assert script.end() in (-signal.SIGINT, 130)  # long before the step would be over
    assert (tmp_path / "checkpoints" / extra.LAST).read_bytes() == saved


@pytest.mark.parametrize("number, codes", [(signal.SIGTERM, (-15, 143)), (signal.SIGINT, (130,))])
def test_a_signal_while_photos_are_cached_leaves_at_once_and_the_next_run_is_sound(tiny_args, tmp_path, number, codes):
    script = Script(tiny_args, before=SLOW_READING)
    script.wait_for("reading")
    script.process.send_signal(number)
    assert script.end() in codes, script.output
    assert "Traceback" not in script.output and "train_loss" not in script.output
    assert not [path for path in (tmp_path / "cache").glob("*x*") if path.suffix != ".partial"]


def test_training_in_a_thread_works_and_signals_are_put_back(finished, tmp_path):
    config, _ = finished
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    result = []
    thread = threading.Thread(target=lambda: result.append(train.train(in_folder(config, tmp_path, epochs=1))))
    thread.start(), thread.join()
    assert result and (tmp_path / "checkpoints" / extra.BEST).exists()
    train.train(in_folder(config, tmp_path, epochs=1, load_model=True))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# ---------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a file system of its own, of 5,000 KiB; without the right to mount the test is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=5000k", "tmpfs", disk]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # CI leaves no promise untested
        give_up(f"mounting a file system needs root and the right to mount ({result.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_room_makes_it_go_on(
    small_disk, tiny_args, run_script, tmp_path
):
    disk = small_disk
    (disk / "ballast").write_bytes(bytes(1_500_000))
    args = [*tiny_args, "--checkpoint-dir", disk / "checkpoints", "--checkpoint-minutes", 0]
    result = run_script("train.py", *args)  # a checkpoint is 2 MB: the first finds room, the second does not
    last_line = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.match(r"error: .*could not be written \(No space left on device\).* Free some space", last_line)
    left = {path.name for path in (disk / "checkpoints").iterdir()}
    assert left == {extra.PREVIOUS, "settings.json"}  # nothing half-written takes the rest
    (disk / "ballast").unlink()
    shutil.move(disk / "checkpoints", tmp_path / "roomy")
    result = run_script("train.py", *tiny_args, "--checkpoint-dir", tmp_path / "roomy", "--load-model")
    assert result.returncode == 0 and "from epoch 1, batch 2" in result.stdout, result.stderr


def test_a_disk_too_small_for_the_cache_is_said_before_it_is_filled(small_disk, pairs):
    (small_disk / "ballast").write_bytes(bytes(4940 * 1024))
    with pytest.raises(OSError, match=r"must have 0\.\d MiB free for the cache, got 0\.1"):
        data.build_cache(pairs, 96, 64, small_disk / "cache", quiet=True)
    assert [path.name for path in (small_disk / "cache").iterdir()] == [".lock"]


# ----------------------------------------------------------------------------------------------------- lock and mirror


def test_a_second_run_in_one_folder_is_refused_until_the_first_is_killed(tiny_settings, tiny_args):
    script = Script([*tiny_args, "--workers", "2"], before=SLOW_STEPS.replace("sleep(1)", "sleep(60)"))
    script.wait_for("stepping")
    second = train.Config(**tiny_settings)
    with pytest.raises(RuntimeError, match="is in use by another training"):
        train.train(second)
    script.process.kill(), script.end()
    assert train.train(second)["dice"] >= 0


def test_a_folder_that_cannot_be_written_to_is_refused(tiny_settings, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot be written to .* Name another --checkpoint-dir"):
        train.train(train.Config(**tiny_settings | dict(checkpoint_dir=tmp_path / "file/checkpoints")))


def test_the_mirror_has_what_a_new_machine_needs_to_resume(finished, tmp_path):
    config, folder = finished
    mirror = tmp_path / "mirror"
    summary = train.train(in_folder(config, tmp_path / "a", mirror_dir=mirror))
    checkpoints = tmp_path / "a" / "checkpoints"
    names = {path.name for path in checkpoints.iterdir()} - {extra.PREVIOUS}
    assert {path.name for path in mirror.iterdir()} == names
    assert all((mirror / name).read_bytes() == (checkpoints / name).read_bytes() for name in names)
    resumed = train.train(in_folder(config, tmp_path / "b", load_model=True, mirror_dir=mirror))
    assert resumed["dice"] == summary["dice"]


def test_a_new_run_sets_the_mirror_aside_too(copied, finished, tmp_path):
    config, folder = finished
    mirror = copied[1] / "checkpoints"
    train.train(in_folder(config, tmp_path / "new", epochs=1, seed=5, mirror_dir=mirror))  # --load-model was forgotten
    assert seed_of(mirror) == 5 and seed_of(copied[1] / "checkpoints-1") == 0


def test_a_mirror_that_fails_is_said_and_training_goes_on(finished, tmp_path, capsys):
    config, _ = finished
    (tmp_path / "drive").write_text("not mounted")
    train.train(in_folder(config, tmp_path, epochs=1, mirror_dir=tmp_path / "drive"))
    assert "could not be copied to" in capsys.readouterr().err
    assert read_last(tmp_path)[1]["progress"]["epoch"] == 1
