"""Training: settings, loss, schedule, a whole run and what it leaves, several processes, refusals."""

import csv
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import time

import extra
import numpy as np
import pytest
import torch
import train
from carvana.machine import process_context
from conftest import SCRIPT_DIR
from PIL import Image
from train import Config


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(image_width=470), "multiples of 16, got 320x470 .* nearest size that works is 320x464"),
        (dict(batch_size=0), "batch_size must be from 1 to 4096, got 0"),
        (dict(epochs=0), "epochs must be from 1"),
        (dict(learning_rate=-1.0), "learning_rate must be from"),
        (dict(kernel_size=4), "kernel_size must be odd, got 4"),
        (dict(validation_share=1.5), "validation_share must be from 0 to 0.9, got 1.5"),
        (dict(test_image_dir="x"), "test_image_dir and test_mask_dir must be given together"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_way_out(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**wrong)


def test_every_setting_is_explained_where_it_stands():
    lines = (SCRIPT_DIR / "train.py").read_text().splitlines()
    for field in dataclasses.fields(Config):
        line = next(line for line in lines if line.startswith(f"    {field.name}: "))
        assert "  # " in line, f"{field.name} has no comment"


def test_the_comments_are_the_help_of_the_command_line(run_script):
    result = run_script("train.py", "--help")
    assert result.returncode == 0
    assert "peak of the schedule" in result.stdout and "--load-model" in result.stdout


def test_the_loss_is_least_where_probability_equals_coverage():
    coverage = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    at_coverage = train.segmentation_loss(torch.logit(coverage.clamp(1e-4, 1 - 1e-4)), coverage)
    for shift in (-0.5, 0.5):
        assert train.segmentation_loss(torch.logit(coverage.clamp(1e-4, 1 - 1e-4)) + shift, coverage) > at_coverage


def test_the_loss_of_undecided_logits_is_solved_in_the_head():
    # Cross-entropy log 2; soft Dice (2 * 2 + 1) / (1 + 4 + 1) with four pixels of probability 1/2 and coverage 1.
    loss = train.segmentation_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert loss.item() == pytest.approx(math.log(2) + 1 - 5 / 6)


def test_the_loss_is_computed_in_float32_whatever_the_logits_are():
    loss = train.segmentation_loss(torch.full((1, 1, 64, 64), 9.0, dtype=torch.bfloat16), torch.ones(1, 1, 64, 64))
    assert loss.dtype == torch.float32


def test_the_learning_rate_rises_to_its_peak_and_ends_near_zero():
    config = Config(learning_rate=0.1, warmup=0.1)
    rates = [train.learning_rate_at(step, 100, config) for step in range(100)]
    assert max(rates) == pytest.approx(0.1) and rates.index(max(rates)) in (9, 10)
    assert rates[0] == pytest.approx(0.01) and rates[-1] < 1e-4
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))


def test_a_moving_average_with_decay_half_moves_half_way():
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        average.weight.fill_(0.0), network.weight.fill_(1.0)
    train.update_average(average, network, decay=0.5, step=1000)
    assert average.weight.item() == 0.5


@pytest.fixture(scope="module")
def finished(tiny_set, tmp_path_factory):
    """A whole run, and what it returned."""
    folder = tmp_path_factory.mktemp("run")
    config = Config(
        train_image_dir=tiny_set / "train",
        train_mask_dir=tiny_set / "train_masks",
        validation_share=0.34,
        image_width=48,
        image_height=32,
        base_width=8,
        batch_size=4,
        epochs=12,
        learning_rate=3e-3,
        ema_decay=0.8,
        device="cpu",
        precision="float32",
        checkpoint_dir=folder / "checkpoints",
        prediction_dir=folder / "predictions",
        cache_dir=folder / "cache",
    )
    return config, train.train(config)


def test_a_run_learns(finished):
    config, summary = finished
    history = list(csv.DictReader((config.checkpoint_dir / "history.csv").read_text().splitlines()))
    assert float(history[-1]["train_loss"]) < 0.5 * float(history[0]["train_loss"])
    card = json.loads((config.checkpoint_dir / "score_card.json").read_text())
    assert card["dice"] > 0.7 and card["black_dice"] == 0


def test_a_run_leaves_checkpoints_history_scores_and_pictures(finished):
    config, _ = finished
    left = {path.name for path in config.checkpoint_dir.iterdir()} - {".lock"}
    assert left == {
        "best.pt",
        "best.safetensors",
        "last.pt",
        "last.previous.pt",
        "history.csv",
        "settings.json",
        "score_card.json",
        "scores.csv",
    }
    pictures = {path.name for path in config.prediction_dir.iterdir()}
    assert pictures == {f"epoch_{n:03d}.png" for n in range(1, 13)} | {"worst.png", "views.png", "curves.png"}
    for path in config.prediction_dir.iterdir():
        with Image.open(path) as picture:
            assert picture.width > 150 and len(picture.getcolors(10**7)) > 20


def test_history_has_a_row_an_epoch(finished):
    config, _ = finished
    rows = list(csv.DictReader((config.checkpoint_dir / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    assert set(rows[0]) == {
        "epoch",
        "train_loss",
        "val_loss",
        "val_dice",
        "learning_rate",
        "images_per_second",
        "data_wait",
        "seconds",
    }


def test_every_validation_photo_is_scored_also_when_they_do_not_fill_a_batch(finished):
    # Other projects drop the last batch and then report Dice 0 for a small validation set.
    config, _ = finished
    rows = list(csv.DictReader((config.checkpoint_dir / "scores.csv").read_text().splitlines()))
    assert len(rows) == 4 and len({row["car"] for row in rows}) == 1


def test_the_summary_names_what_a_reader_greps_for(finished):
    _, summary = finished
    assert list(summary) == [
        "dice",
        "accuracy",
        "edge_dice",
        "images_per_second",
        "data_wait",
        "seconds",
        "peak_memory_mib",
        "parameters",
        "checkpoint",
    ]
    assert (
        0 < float(summary["dice"]) <= 1
        and float(summary["images_per_second"]) > 0
        and float(summary["peak_memory_mib"]) > 100
    )


def test_best_pt_rebuilds_a_network_that_predicts_as_scored(finished):
    config, summary = finished
    network, description = extra.load_network(config.checkpoint_dir / "best.pt")
    assert (description["image_width"], description["image_height"]) == (48, 32) and 0 < description["threshold"] < 1
    card = description["trained"]["score_card"]
    assert f"{card['dice']:.6f}" == summary["dice"]
    assert network.settings["base_width"] == 8


def test_the_weights_to_share_say_how_they_were_trained_and_not_where(finished):
    config, _ = finished
    network, description = extra.load_network(config.checkpoint_dir / "best.safetensors")
    assert description["trained"]["settings"]["learning_rate"] == 3e-3 and description["trained"]["n_train_photos"] == 8
    assert str(config.checkpoint_dir.parent) not in json.dumps(description)


def test_start_from_begins_with_the_weights_of_a_file(finished, tmp_path):
    config, _ = finished
    again = dataclasses.replace(
        config,
        start_from=config.checkpoint_dir / "best.pt",
        epochs=1,
        learning_rate=1e-9,
        checkpoint_dir=tmp_path / "c",
        prediction_dir=tmp_path,
    )
    first = json.loads((config.checkpoint_dir / "score_card.json").read_text())["dice"]
    assert float(train.train(again)["dice"]) == pytest.approx(first, abs=0.03)
    described = extra.load_network(tmp_path / "c/best.safetensors")[1]["trained"]
    assert described["started_from"]["settings"]["epochs"] == config.epochs and described["settings"]["epochs"] == 1


def test_a_new_run_sets_the_earlier_one_aside(finished, tmp_path):
    for name in ("last.pt", "last.previous.pt", "best.pt"):
        (tmp_path / name).write_text(name)
    train.set_earlier_run_aside(tmp_path)
    assert {path.name for path in (tmp_path / "earlier").iterdir()} == {"last.pt", "last.previous.pt", "best.pt"}
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("change", [dict(base_width=4), dict(image_width=64), dict(seed=1), dict(batch_size=2)])
def test_going_on_with_settings_that_do_not_fit_is_refused(finished, change):
    config, _ = finished
    name, value = next(iter(change.items()))
    with pytest.raises(
        ValueError, match=f"{name} must be {getattr(config, name)}, as when .*last.pt was saved, got {value}"
    ):
        train.train(dataclasses.replace(config, load_model=True, **change))


def test_own_photos_not_named_like_carvana_train_too(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("my car", "Straße", "third"):
        mask = np.zeros((50, 70), np.uint8)
        mask[10:40, 20:60] = 255
        (tmp_path / "p").mkdir(exist_ok=True), (tmp_path / "m").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "p" / f"{name}.webp")
        Image.fromarray(mask).save(tmp_path / "m" / f"{name}.png")
    summary = train.train(
        Config(
            train_image_dir=tmp_path / "p",
            train_mask_dir=tmp_path / "m",
            image_width=32,
            image_height=32,
            base_width=2,
            epochs=1,
            device="cpu",
            checkpoint_dir=tmp_path / "c",
            prediction_dir=tmp_path / "o",
            cache_dir=tmp_path / "k",
        )
    )
    assert 0 <= float(summary["dice"]) <= 1


def test_test_folders_are_used_as_they_are_and_shared_cars_are_named(tiny_settings, tiny_set, capsys):
    config = Config(**tiny_settings, test_image_dir=tiny_set / "train", test_mask_dir=tiny_set / "train_masks")
    _, train_rows, validation_rows = train.prepare_data(config, quiet=False)
    assert (len(train_rows), len(validation_rows)) == (12, 12)
    assert "warning: 3 cars stand in both training and test photos" in capsys.readouterr().err


def test_the_command_line_prints_a_table_and_aligned_keys(tiny_args, run_script):
    result = run_script("train.py", *tiny_args)
    assert result.returncode == 0, result.stderr
    head, tail = result.stdout.split("---\n")
    assert " epoch  train loss" in head and "score card at the photos' own size: 4 photos of 1 cars" in head
    assert all(line[:20].rstrip().endswith(":") and line[20] != " " for line in tail.splitlines())


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--train-image-dir", "nowhere"], "nowhere is not a folder"),
        (["--load-model"], "last.pt does not exist, so there is nothing to go on from"),
        (["--device", "cuda:7"], "device must be one that this machine has, got cuda:7"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(tiny_args, run_script, args, sentence):
    if "cuda" in args[-1] and torch.cuda.is_available():
        args = ["--train-image-dir", "nowhere"]
        sentence = "nowhere is not a folder"
    result = run_script("train.py", *tiny_args, *args)
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr


def test_a_wrong_option_exits_with_2(run_script):
    assert run_script("train.py", "--epoch-count", "3").returncode == 2


def test_two_processes_train_one_network_and_score_each_photo_once(tiny_args, tiny_settings):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(SCRIPT_DIR / "train.py"),
    ]
    result = subprocess.run([*command, *tiny_args], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("---\n") == 1, "one process writes"
    rows = list(csv.DictReader((tiny_settings["checkpoint_dir"] / "scores.csv").read_text().splitlines()))
    assert len(rows) == len({row["name"] for row in rows}) == 4


def become_one_of_two(rank, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_two(function, *arguments) -> None:
    method = process_context().get_start_method()
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method=method)


def save_slowly(rank, port, settings):
    """What each of two processes does: train, where the one that saves takes its time."""
    become_one_of_two(rank, port)
    save_checkpoint = extra.save_checkpoint
    extra.save_checkpoint = lambda *args, **keywords: (time.sleep(1), save_checkpoint(*args, **keywords))
    train.train(Config(**settings))


def test_two_processes_score_the_same_weights_however_long_saving_takes(tiny_settings):
    start_two(save_slowly, free_port(), {**tiny_settings, "epochs": 1})
    assert len((tiny_settings["checkpoint_dir"] / "scores.csv").read_text().splitlines()) == 5


def two_processes(rank, folder, port, settings):
    """What each of two processes does: train, and keep the weights and the rows that it saw."""
    become_one_of_two(rank, port)
    seen, weights = [], {}
    original = train.CarDataset.__getitem__

    def watch(self, key):
        if self.augment:
            seen.append(key)
        return original(self, key)

    train.CarDataset.__getitem__ = watch
    original_average = train.update_average

    def keep(average, network, decay, step):
        weights.update({name: p.detach().clone() for name, p in network.named_parameters()})
        original_average(average, network, decay, step)

    train.update_average = keep
    train.train(Config(**settings))
    torch.save((seen, weights), f"{folder}/{rank}.pt")


def test_two_processes_see_what_one_sees_and_end_with_equal_weights(tiny_settings, tmp_path):
    start_two(two_processes, str(tmp_path), free_port(), tiny_settings)
    (seen_0, weights_0), (seen_1, weights_1) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert sorted(seen_0 + seen_1) == [
        (epoch, row) for epoch in range(2) for row in sorted({row for _, row in seen_0 + seen_1})
    ]
    assert len(seen_0 + seen_1) == 2 * 8 and not set(seen_0) & set(seen_1)
    for name in weights_0:
        assert torch.equal(weights_0[name], weights_1[name]), name
