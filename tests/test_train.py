"""Training: settings, loss, schedule, a whole run and what it leaves, several processes, refusals."""

import csv
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import train
from carvana.machine import process_context
from carvana.masks import load_mask
from carvana.metrics import dice
from carvana.segmenter import DEFAULT_WEIGHTS
from carvana.settings import format_settings, parse_settings, settings_class
from carvana.weights import load_network
from conftest import PROJECT_DIR, SCRIPT_DIR, draw_cars
from PIL import Image
from train import Config

import data

WRONG_VALUES = [
    (dict(learning_rate="1e-4"), "learning_rate must be a valid number, got '1e-4'."),
    (dict(epochs=1.5), "epochs must be a valid integer, got 1.5."),
    (dict(batch_size=8.0), "batch_size must be a valid integer, got 8.0."),
    (dict(augment="no"), "augment must be a valid boolean, got 'no'."),
    (dict(precision="float16"), "precision must be 'auto', 'bf16', 'fp16' or 'float32', got 'float16'."),
    (dict(ema_decay=None), "ema_decay must be a valid number, got None."),
    (dict(train_image_dir=3), "train_image_dir must be a path, got 3."),
    (dict(batch_size=0), "batch_size must be greater than or equal to 1, got 0."),
    (dict(learning_rate=-1.0), "learning_rate must be greater than 0, got -1.0."),
    (dict(validation_share=1.5), "validation_share must be less than or equal to 1, got 1.5."),
    (dict(seeds=3), "seeds is not a setting."),
]


@pytest.mark.parametrize("wrong, sentence", WRONG_VALUES)
def test_values_that_do_not_fit_a_setting_are_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError) as error:
        Config(**wrong)
    assert str(error.value) == sentence


@pytest.mark.parametrize("wrong, sentence", [pair for pair in WRONG_VALUES if pair[0].keys() != {"seeds"}])
def test_defaults_edited_in_the_file_are_refused_as_well(wrong, sentence):
    # Users are told to edit the settings where they stand.
    [(name, value)] = wrong.items()
    edited = settings_class(type("Edited", (), {"__annotations__": {name: Config.__annotations__[name]}, name: value}))
    with pytest.raises(ValueError) as error:
        edited()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(image_width=470), "multiples of 16, got 320x470 .* nearest size that works is 320x464"),
        (dict(kernel_size=4), "kernel_size must be odd, got 4"),
        (dict(test_image_dir="x"), "test_image_dir and test_mask_dir must be given together"),
        (dict(checkpoint_dir=DEFAULT_WEIGHTS.parent), "checkpoint_dir must be a folder of the run's own"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_way_out(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**wrong)


def test_two_mistakes_are_two_lines_and_strings_become_paths():
    with pytest.raises(ValueError, match="^epochs must .*\nseed must .*$"):
        Config(epochs="3", seed=None)
    assert Config(train_image_dir="x").train_image_dir == Path("x")


def test_every_setting_is_explained_where_it_stands():
    lines = (SCRIPT_DIR / "train.py").read_text().splitlines()
    for field in dataclasses.fields(Config):
        line = next(line for line in lines if line.startswith(f"    {field.name}: "))
        assert "  # " in line, f"{field.name} has no comment"


def test_the_comments_are_the_help_and_paths_are_relative_to_the_project(run_script):
    result = run_script("train.py", "--help")
    assert result.returncode == 0
    assert "peak of the schedule" in result.stdout and "--load-model" in result.stdout
    assert "(default: data/train)" in result.stdout and str(PROJECT_DIR) not in result.stdout


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("--lr", "--learning-rate"),
        ("--epoch", "--epochs"),
        ("--batch", "--batch-size"),
        ("--image-wdith", "--image-width"),
    ],
)
def test_an_option_that_does_not_exist_is_answered_with_the_right_name(wrong, right, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_settings(Config, [wrong, "3"], None)
    assert capsys.readouterr().err == f"error: {wrong} is not an option. Did you mean {right}?\n"


def test_settings_that_are_not_the_defaults_are_marked():
    lines = format_settings(Config(epochs=3)).splitlines()
    assert "* epochs              3" in lines and "  batch_size          8" in lines
    assert "  train_image_dir     data/train" in lines


def test_the_loss_is_least_where_probability_equals_coverage():
    coverage = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    logits, known = torch.logit(coverage.clamp(1e-4, 1 - 1e-4)), torch.ones(1, 1, 2, 2)
    at_coverage = train.segmentation_loss(logits, coverage, known)
    for shift in (-0.5, 0.5):
        assert train.segmentation_loss(logits + shift, coverage, known) > at_coverage


def test_the_loss_of_undecided_logits_is_solved_in_the_head():
    # Cross-entropy log 2; soft Dice (2 * 2 + 1) / (1 + 4 + 1) with four pixels of probability 1/2 and coverage 1.
    ones = torch.ones(1, 1, 2, 2)
    assert train.segmentation_loss(0 * ones, ones, ones).item() == pytest.approx(math.log(2) + 1 - 5 / 6)


def test_unknown_pixels_have_no_loss_and_no_gradient():
    logits = torch.randn(2, 1, 4, 6, requires_grad=True)
    coverage, known = torch.rand(2, 1, 4, 6), torch.ones(2, 1, 4, 6)
    known[..., 3:] = 0
    loss = train.segmentation_loss(logits, coverage, known)
    of_the_rest = train.segmentation_loss(logits[..., :3], coverage[..., :3], known[..., :3])
    assert loss.item() == pytest.approx(of_the_rest.item())
    loss.backward()
    assert (logits.grad[..., 3:] == 0).all() and (logits.grad[..., :3] != 0).all()
    assert train.segmentation_loss(logits, coverage, 0 * known).item() == 0  # a photo of which nothing is known


def test_the_loss_is_computed_in_float32_whatever_the_logits_are():
    ones = torch.ones(1, 1, 64, 64)
    assert train.segmentation_loss(ones.bfloat16() * 9, ones, ones).dtype == torch.float32


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
    names = "best last last.previous".split()
    tables = {"history.csv", "settings.json", "score_card.json", "scores.csv"}
    assert {path.name for path in config.checkpoint_dir.iterdir()} == {f"{name}.safetensors" for name in names} | tables
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
    numbers = "dice accuracy edge_dice threshold images_per_second data_wait seconds peak_memory_mib parameters".split()
    assert list(summary) == [*numbers, "checkpoint"]
    assert 0 < summary["dice"] <= 1 and summary["images_per_second"] > 0 and summary["peak_memory_mib"] > 100


def test_the_weights_say_how_they_were_trained_and_not_where(finished):
    config, summary = finished
    network, description = load_network(config.checkpoint_dir / "best.safetensors")
    assert (description.image_width, description.image_height) == (48, 32) and network.settings["base_width"] == 8
    assert description.threshold == summary["threshold"]
    assert description.trained["score_card"]["dice"] == summary["dice"]
    assert description.trained["settings"]["learning_rate"] == 3e-3
    assert str(config.checkpoint_dir.parent) not in json.dumps(description.trained)


def test_the_card_scores_what_predict_writes(tmp_path, run_script):
    """The card's Dice equals that of predict.py's masks: odd sizes, JPEG decoded at a fraction, a mediocre network."""
    folder, rng = draw_cars(tmp_path / "set", n_cars=2, n_views=1), np.random.default_rng(1)
    for number, (width, height) in enumerate([(97, 63), (301, 203), (640, 427), (181, 241)]):
        name = f"{3 + number % 2:012x}_{number + 1:02d}"
        mask = cv2.ellipse(
            np.zeros((height, width), np.uint8),
            (width // 2, height // 2),
            (width // 3, height // 4),
            9,
            0,
            360,
            255,
            -1,
        )
        photo = rng.integers(90, 160, (height, width, 3), np.uint8) + mask[..., None] // 6
        Image.fromarray(photo).save(folder / "train" / f"{name}.jpg", quality=92)
        Image.fromarray(mask).save(folder / "train_masks" / f"{name}_mask.gif")
    places = dict(train_image_dir=folder / "train", train_mask_dir=folder / "train_masks", cache_dir=tmp_path / "cache")
    places |= dict(checkpoint_dir=tmp_path / "run", prediction_dir=tmp_path / "pictures")
    config = Config(
        **places,
        image_width=96,
        image_height=64,
        base_width=4,
        batch_size=1,
        epochs=9,
        learning_rate=3e-3,
        ema_decay=0.5,
        validation_share=0.5,
        device="cpu",
    )
    summary = train.train(config)
    rows = list(csv.DictReader((config.checkpoint_dir / "scores.csv").read_text().splitlines()))
    photos = [folder / "train" / f"{row['name']}.jpg" for row in rows]
    for outputs in (["mask"], ["mask", "cutout", "overlay"]):
        masks = tmp_path / "masks" / str(len(outputs))
        weights = config.checkpoint_dir / "best.safetensors"
        result = run_script("predict.py", *photos, "--weights", weights, "--output", masks, "--outputs", *outputs)
        assert result.returncode == 0, result.stderr
        found = []
        for photo in photos:
            truth = load_mask(folder / "train_masks" / f"{photo.stem}_mask.gif")
            found.append(dice(load_mask(masks / f"{photo.stem}_mask.png"), truth))
        assert found == pytest.approx([float(row["dice"]) for row in rows], abs=1e-6)
        assert np.mean(found) == pytest.approx(summary["dice"], abs=1e-6)
    assert 0.5 < summary["dice"] < 0.99, "or the test would see little"


def test_start_from_begins_with_the_weights_of_a_file(finished, tmp_path):
    config, _ = finished
    again = dataclasses.replace(
        config,
        start_from=config.checkpoint_dir / "best.safetensors",
        epochs=1,
        learning_rate=1e-9,
        checkpoint_dir=tmp_path / "c",
        prediction_dir=tmp_path,
    )
    first = json.loads((config.checkpoint_dir / "score_card.json").read_text())["dice"]
    assert train.train(again)["dice"] == pytest.approx(first, abs=0.03)
    described = load_network(tmp_path / "c/best.safetensors")[1].trained
    assert described["started_from"]["settings"]["epochs"] == config.epochs and described["settings"]["epochs"] == 1


@pytest.mark.parametrize("change", [dict(base_width=4), dict(image_width=64), dict(seed=1), dict(batch_size=2)])
def test_going_on_with_settings_that_do_not_fit_is_refused(finished, change):
    config, _ = finished
    name, value = next(iter(change.items()))
    with pytest.raises(
        ValueError, match=f"{name} must be {getattr(config, name)}, as when .*last.safetensors was saved, got {value}"
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
    assert 0 <= summary["dice"] <= 1


def test_test_folders_are_used_as_they_are_and_shared_cars_are_named(tiny_settings, tiny_set, capsys):
    config = Config(**tiny_settings, test_image_dir=tiny_set / "train", test_mask_dir=tiny_set / "train_masks")
    _, train_rows, validation_rows = train.prepare_data(config, quiet=False)
    assert (len(train_rows), len(validation_rows)) == (12, 12)
    assert "warning: 3 cars to test on are trained on, too" in capsys.readouterr().err


def test_the_command_line_prints_a_table_and_aligned_keys(tiny_args, run_script):
    result = run_script("train.py", *tiny_args)
    assert result.returncode == 0, result.stderr
    head, tail = result.stdout.split("---\n")
    assert "   epoch  train_loss" in head and "score card at full resolution: 4 photos of 1 car" in head
    assert all(line[:20].rstrip().endswith(":") and line[20] != " " for line in tail.splitlines())


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--train-image-dir", "nowhere"], "nowhere is not a folder"),
        (["--load-model"], "last.safetensors does not exist: there is nothing to resume"),
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


def two_processes(rank, folder, port, settings):
    """What each of two processes does: train, and keep the weights and the rows that it saw."""
    become_one_of_two(rank, port)
    seen, weights = [], {}
    original = data.CarDataset.__getitem__

    def watch(self, key):
        if self.augment:
            seen.append(key)
        return original(self, key)

    data.CarDataset.__getitem__ = watch
    original_step = train.train_step

    def keep(run, batch):
        loss = original_step(run, batch)
        weights.update({name: parameter.detach().clone() for name, parameter in run.network.named_parameters()})
        return loss

    train.train_step = keep
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
