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
from carvana import machine
from conftest import PROJECT_DIR, SCRIPT_DIR
from unet import UNet

import data

sys.path.append(str(PROJECT_DIR / "benchmarks"))


def lines_of(output: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_runs_killed_at_random_moments_end_equal_bit_by_bit(precision):
    """Kill trainings in steps, saves, between renamings and in validation; compare all files with an untouched run's."""
    n_kills = dict(float32=20, fp16=4)[precision]  # fp16 adds the gradient scaler
    args = [
        sys.executable,
        str(PROJECT_DIR / "benchmarks" / "soak_resume.py"),
        "--kills",
        str(n_kills),
        "--precision",
        precision,
    ]
    result = subprocess.run(args, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr + result.stdout
    lines = lines_of(result.stdout)
    assert lines["mismatches"] == "0"
    assert sum(int(lines[key]) for key in ("kills", "sigterm", "sigint")) == n_kills
    if precision == "float32":
        struck = " ".join(key for key in lines if key.startswith("struck"))
        # A kill from outside may end a run before the moment whose turn it was, so not each kind is struck each time.
        inside_a_save = ("half of a file", "before flushing", "not renamed", "between the two renamings")
        assert sum(moment in struck for moment in inside_a_save) >= 2
        assert "step" in struck and "from outside" in struck


@pytest.fixture(scope="module")
def finished(tiny_set, tmp_path_factory) -> tuple[train.Config, Path]:
    """A finished run of two epochs, saved after each step; its folder."""
    folder = tmp_path_factory.mktemp("finished")
    config = train.Config(
        train_image_dir=tiny_set / "train",
        train_mask_dir=tiny_set / "train_masks",
        validation_share=0.34,
        image_width=48,
        image_height=32,
        base_width=2,
        batch_size=4,
        epochs=2,
        warmup=0.2,
        ema_decay=0.9,
        checkpoint_minutes=0,
        device="cpu",
        precision="float32",
        workers=0,
        checkpoint_dir=folder / "checkpoints",
        prediction_dir=folder / "predictions",
        cache_dir=folder / "cache",
    )
    train.train(config)
    return config, folder


def in_folder(config: train.Config, folder: Path, **changes) -> train.Config:
    return dataclasses.replace(
        config, checkpoint_dir=folder / "checkpoints", prediction_dir=folder / "predictions", **changes
    )


def test_the_comparison_sees_a_single_bit(finished, tmp_path):
    import soak_resume

    config, folder = finished
    shutil.copytree(folder, tmp_path / "copy")
    assert soak_resume.compare_runs(tmp_path / "copy", folder) == []
    last = tmp_path / "copy" / "checkpoints" / "last.pt"
    state = extra.read_checkpoint(last)
    state["optimizer"]["state"][1]["exp_avg"].view(torch.int32)[0] ^= 1
    extra.save_checkpoint(last, state)
    picture = tmp_path / "copy" / "predictions" / "epoch_002.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    (tmp_path / "copy" / "predictions" / "worst.png").unlink()
    assert soak_resume.compare_runs(tmp_path / "copy", folder) == [
        "the file predictions/worst.png",
        "checkpoints/last.pt/optimizer/state/1/exp_avg",
        "predictions/epoch_002.png",
    ]


def test_a_damaged_last_checkpoint_costs_steps_but_not_a_bit(finished, tmp_path, capsys):
    import soak_resume

    config, folder = finished
    shutil.copytree(folder, tmp_path / "copy")
    last = tmp_path / "copy" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    train.train(in_folder(config, tmp_path / "copy", load_model=True))
    assert "last.pt is damaged" in capsys.readouterr().err
    assert soak_resume.compare_runs(tmp_path / "copy", folder) == []


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_stopped_in_validation_goes_on_there(finished, tmp_path, monkeypatch, epoch):
    import soak_resume

    config, folder = finished
    real_dice, calls = extra.dice, []

    def dice(*arguments):
        calls.append(1)
        if len(calls) == 4 * epoch - 1:  # four validation photos
            os.kill(os.getpid(), signal.SIGTERM)
        return real_dice(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(extra, "dice", dice)
        patch.setattr(
            train, "save_epoch_picture", lambda *arguments: None
        )  # it calls dice too; epoch 1's is not compared below
        with pytest.raises(SystemExit, match="143"):
            train.train(in_folder(config, tmp_path))
    state = extra.read_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (epoch - 1, 2)
    train.train(in_folder(config, tmp_path, load_model=True))
    found = soak_resume.compare_runs(tmp_path, folder)
    assert all("the file cache/" in what or what == "the file predictions/epoch_001.png" for what in found), found


def test_workers_and_checkpoint_times_change_no_bit(finished, tmp_path):
    import soak_resume

    config, folder = finished
    train.train(in_folder(config, tmp_path, workers=2, checkpoint_minutes=10))
    found = soak_resume.compare_runs(tmp_path, folder)
    # What differs is the two settings themselves, and the folder of the cache.
    assert all(what.endswith(("/workers", "/checkpoint_minutes")) or "the file cache/" in what for what in found), found


def test_no_data_worker_outlives_the_training(finished, tmp_path):
    config, _ = finished
    train.train(in_folder(config, tmp_path, workers=2, epochs=1))
    assert not [
        process for process in multiprocessing.active_children() if process.daemon
    ]  # as DataLoader's workers are


def test_no_network_outlives_the_training(finished, tmp_path):
    count_networks = lambda: sum(type(thing) is UNet for thing in gc.get_objects())
    config, _ = finished
    gc.collect()  # what other tests left
    before = count_networks()
    train.train(in_folder(config, tmp_path, epochs=1))
    assert count_networks() == before


@pytest.mark.parametrize("wanted", ["go on", "begin anew"])
def test_setting_a_run_aside_may_be_cut_short_anywhere(finished, tmp_path, monkeypatch, wanted):
    """Whichever file the process is killed at, the earlier run is found whole, and never half of it."""
    config, folder = finished
    names = {path.name for path in (folder / "checkpoints").iterdir() if path.is_file() and path.name != ".lock"}
    real_replace = Path.replace
    for moved in range(len(names)):
        run = tmp_path / f"{moved}"
        shutil.copytree(folder / "checkpoints", run)
        left = [moved]

        def replace(self, target):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real_replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                train.set_earlier_run_aside(run)
        if wanted == "go on":
            train.bring_earlier_run_back(run)
            whole = run
        else:
            train.set_earlier_run_aside(run)
            whole = run / "earlier"
            assert not (run / "last.previous.pt").exists()  # a new run could otherwise go on with the old one's
        assert {path.name for path in whole.iterdir() if path.is_file() and path.name != ".lock"} == names


def test_a_run_that_hardly_began_does_not_replace_the_earlier_one(finished, tmp_path):
    config, folder = finished
    shutil.copytree(folder / "checkpoints", tmp_path / "c")
    train.set_earlier_run_aside(tmp_path / "c")
    (tmp_path / "c" / "settings.json").write_text("{}")  # all that a run killed in its first step leaves
    train.set_earlier_run_aside(tmp_path / "c")
    assert (tmp_path / "c" / "earlier" / "last.pt").exists() and not (tmp_path / "c" / "earlier-2").exists()


def test_no_earlier_run_is_deleted_for_another(tmp_path):
    for number in range(1, 4):
        (tmp_path / "last.pt").write_text(f"run {number}")
        train.set_earlier_run_aside(tmp_path)
    found = {path.parent.name: path.read_text() for path in tmp_path.glob("*/last.pt")}
    assert found == {"earlier": "run 1", "earlier-2": "run 2", "earlier-3": "run 3"}


def test_settings_that_may_change_take_effect_and_are_said(finished, tmp_path, capsys):
    config, folder = finished
    shutil.copytree(folder, tmp_path / "copy")
    train.train(in_folder(config, tmp_path / "copy", load_model=True, epochs=3, weight_decay=0.5))
    assert "epochs 2 -> 3" in (out := capsys.readouterr().out) and "weight_decay 0.01 -> 0.5" in out
    state = extra.read_checkpoint(tmp_path / "copy" / "checkpoints" / "last.pt")
    # The optimizer's own settings once came back with its moments, and the change had no effect.
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5 and state["progress"]["epoch"] == 3


@pytest.mark.parametrize(
    "setting, value",
    [("base_width", 4), ("batch_size", 2), ("seed", 1), ("image_width", 64), ("validation_share", 0.67)],
)
def test_settings_that_would_change_the_meaning_of_the_place_are_refused(finished, tmp_path, setting, value):
    config, folder = finished
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=f"{setting} must be .* got {value}"):
        train.train(in_folder(config, tmp_path, load_model=True, **{setting: value}))


# ------------------------------------------------------------------------------------------------------------ signals


class Script:
    """A running train.py whose output can be waited for."""

    def __init__(self, args: list[str], **keywords):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", keywords.pop("before", "") + RUN_TRAIN, *args]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **keywords
        )
        self.output = ""

    def wait_for(self, text: str) -> None:
        while text not in self.output:
            letter = self.process.stdout.read(1)
            assert letter, f"it ended before {text!r}: {self.output}"
            self.output += letter

    def end(self) -> int:
        self.output += self.process.communicate(timeout=120)[0]
        return self.process.returncode


# The very last lines of train.py, after whatever a test puts before them.
RUN_TRAIN = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT_DIR)!r})
runpy.run_path({str(SCRIPT_DIR / "train.py")!r}, run_name="__main__")
"""
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
import sys, time
from PIL import Image
real_init = Image.init
def init():
    print("reading", flush=True)
    time.sleep(0.5)
    return real_init()
Image.init = init
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_after_the_step(tiny_args, tmp_path, number):
    # Two data workers: Ctrl-C and `timeout` signal the whole group, and the workers must not take the run down before it has saved.
    args = [*tiny_args, "--workers", "2"]
    script = Script(args, before=SLOW_STEPS, start_new_session=True)
    script.wait_for("stepping")
    os.killpg(script.process.pid, number)
    assert script.end() == 128 + number, script.output
    assert f"stopped by {number.name}; go on with --load-model" in script.output and "Traceback" not in script.output
    assert extra.read_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["batch"] == 1


def test_a_second_signal_leaves_at_once_and_what_was_saved_stays(tiny_args, tmp_path, run_script):
    args = [*tiny_args, "--workers", "2"]
    assert run_script("train.py", *args, "--epochs", "1").returncode == 0
    saved = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    script = Script([*args, "--load-model"], before=SLOW_STEPS.replace("sleep(1)", "sleep(60)"), start_new_session=True)
    script.wait_for("stepping")
    begun = time.perf_counter()
    os.killpg(script.process.pid, signal.SIGINT)
    time.sleep(0.5)
    script.process.send_signal(signal.SIGINT)
    assert script.end() in (-signal.SIGINT, 130)
    assert time.perf_counter() - begun < 30
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == saved


def test_several_processes_save_and_leave_though_an_epoch_is_short(tiny_args, tmp_path):
    """torchrun passes the signal on and kills after 30 seconds; here an epoch is three steps of a second."""
    (tmp_path / "train.py").write_text(SLOW_STEPS + RUN_TRAIN)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(tmp_path / "train.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, *tiny_args, "--epochs", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    while "stepping" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert "stopped by SIGTERM; go on with --load-model" in output, output
    assert extra.read_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["epoch"] == 1


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_photos_are_cached_leaves_at_once_and_leaves_no_half_cache(tiny_args, tmp_path, number, code):
    script = Script(tiny_args, before=SLOW_READING)
    script.wait_for("reading")
    script.process.send_signal(number)
    assert script.end() == code, script.output
    assert "Traceback" not in script.output and "epoch" not in script.output
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_training_in_a_thread_works_and_signals_are_put_back(finished, tmp_path):
    config, folder = finished
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    result = []
    thread = threading.Thread(target=lambda: result.append(train.train(in_folder(config, tmp_path, epochs=1))))
    thread.start(), thread.join()
    assert result and (tmp_path / "checkpoints" / "best.pt").exists()
    train.train(in_folder(config, tmp_path, epochs=1, load_model=True))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# ---------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path):
    """Mount a real file system of the size asked for; where that is not allowed the kernel limits the size of files."""
    folder, mounted = tmp_path / "disk", []

    def make(kib: int) -> Path:
        folder.mkdir()
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True, text=True
        )
        if result.returncode:
            reason = f"mounting a file system needs root and the right to mount ({result.stderr.strip()})"
            if os.environ.get("CI") == "true":  # a promise must not go untested without anyone noticing
                pytest.fail(reason)
            pytest.skip(reason)
        mounted.append(folder)
        return folder

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_whole_and_one_sentence(small_disk):
    disk = small_disk(1000)
    path = disk / "last.pt"
    weights = [torch.randn(100_000), torch.randn(100_000)]  # 400 kB each
    extra.save_checkpoint(path, dict(weights=weights[0]), keep_previous=True)
    extra.save_checkpoint(path, dict(weights=weights[1]), keep_previous=True)
    for _ in range(3):
        with pytest.raises(
            OSError, match=r"last\.pt.* could not be written \(No space left on device\).* Free some space"
        ):
            extra.save_checkpoint(path, dict(weights=weights[0]), keep_previous=True)
        assert torch.equal(extra.read_checkpoint(path)["weights"], weights[1])
        assert sorted(file.name for file in disk.iterdir()) == [
            "last.previous.pt",
            "last.pt",
        ]  # nothing half-written takes the rest


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_room_makes_it_go_on(
    small_disk, tiny_args, run_script, tmp_path
):
    disk = small_disk(5000)
    (disk / "ballast").write_bytes(bytes(1_500_000))
    args = [*tiny_args, "--checkpoint-dir", disk / "checkpoints", "--checkpoint-minutes", 0, "--base-width", 4]
    result = run_script("train.py", *args)  # a checkpoint is 2 MB: the first finds room, the second does not
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.match(
        r"error: .*could not be written \(No space left on device\)", result.stderr.strip().splitlines()[-1]
    )
    assert extra.read_checkpoint(disk / "checkpoints" / "last.pt")["progress"]["batch"] == 1
    (disk / "ballast").unlink()
    shutil.move(disk / "checkpoints", tmp_path / "roomy")
    result = run_script("train.py", *tiny_args, "--checkpoint-dir", tmp_path / "roomy", "--load-model")
    assert result.returncode == 0 and "going on from epoch 1, batch 2" in result.stdout


def test_a_disk_too_small_for_the_cache_is_said_before_it_is_filled(small_disk, tiny_set):
    disk = small_disk(60)
    pairs = data.require_pairs(tiny_set / "train", tiny_set / "train_masks")
    with pytest.raises(OSError, match=r"must have 0 MiB free for the cache \(No space left on device\)|No space left"):
        data.build_cache(pairs, 96, 64, disk / "cache", quiet=True)
    assert [path.name for path in (disk / "cache").iterdir()] == [".lock"]


def test_a_limit_on_file_size_is_treated_like_a_full_disk(tmp_path):
    """The same promise where nobody may mount: the kernel itself cuts the file."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(SCRIPT_DIR)!r})
from pathlib import Path
import extra
from carvana import machine
path = Path({str(tmp_path / "last.pt")!r})
extra.write_file(path, b"old" * 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
def main(args):
    extra.write_file(path, bytes(5000))
extra.run_command(main, [])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and "last.pt could not be written (File too large)" in result.stderr
    assert (tmp_path / "last.pt").read_bytes() == b"old" * 10 and len(list(tmp_path.iterdir())) == 1


# ----------------------------------------------------------------------------------------------------- lock and mirror


def test_a_second_run_in_one_folder_is_refused_and_the_lock_dies_with_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "LOCK_SECONDS", 0.2)
    code = f"import filelock; lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RuntimeError, match="is in use by another training"):
        with train.lock_folder(tmp_path):
            pass
    process.kill(), process.communicate()
    with train.lock_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot be written to .* Name another --checkpoint-dir"):
        with train.lock_folder(tmp_path / "file" / "checkpoints"):
            pass


def test_the_mirror_has_the_last_checkpoint_and_a_run_on_a_new_machine_goes_on_from_it(finished, tmp_path, capsys):
    config, folder = finished
    mirror = tmp_path / "mirror"
    train.train(in_folder(config, tmp_path / "a", mirror_dir=mirror))
    assert sorted(path.name for path in mirror.iterdir()) == ["best.pt", "best.safetensors", "last.pt"]
    for path in mirror.iterdir():
        assert path.read_bytes() == (tmp_path / "a" / "checkpoints" / path.name).read_bytes()
    dice = train.train(in_folder(config, folder, load_model=True))["dice"]
    assert train.train(in_folder(config, tmp_path / "b", load_model=True, mirror_dir=mirror))["dice"] == dice
    assert f"the checkpoints are those of the mirror, {mirror}" in capsys.readouterr().out


def test_a_new_run_sets_the_mirror_aside_too(finished, tmp_path):
    config, folder = finished
    mirror = tmp_path / "mirror"
    shutil.copytree(folder / "checkpoints", mirror)
    before = (mirror / "last.pt").read_bytes()
    train.train(in_folder(config, tmp_path / "new", epochs=1, seed=5, mirror_dir=mirror))  # --load-model was forgotten
    assert (mirror / "earlier" / "last.pt").read_bytes() == before != (mirror / "last.pt").read_bytes()


def test_a_resumed_run_knows_what_it_started_from(finished, tmp_path):
    config, folder = finished
    start_from = folder / "checkpoints" / "best.safetensors"
    train.train(in_folder(config, tmp_path, epochs=1, start_from=start_from))
    train.train(in_folder(config, tmp_path, epochs=2, load_model=True))
    trained = extra.load_network(tmp_path / "checkpoints" / "best.safetensors")[1]["trained"]
    assert trained["started_from"] == extra.load_network(start_from)[1]["trained"]


def test_a_mirror_that_fails_is_said_and_training_goes_on(finished, tmp_path, capsys):
    config, _ = finished
    (tmp_path / "drive").write_text("not mounted")
    train.train(in_folder(config, tmp_path, epochs=1, mirror_dir=tmp_path / "drive"))
    assert "warning: the mirror failed" in capsys.readouterr().err
    assert extra.read_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["epoch"] == 1


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for name in (f"last.pt.{process.pid}.tmp", f"last.pt.{os.getpid()}.tmp", "mine.tmp", "notes.txt"):
        (tmp_path / name).write_text("x")
    extra.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"last.pt.{os.getpid()}.tmp", "mine.tmp", "notes.txt"]
    )
