"""Training: settings, loss, schedule, a whole run and what it leaves, several processes, refusals."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import train
from carvana.masks import load_mask
from carvana.metrics import dice
from carvana.segmenter import DEFAULT_WEIGHTS
from carvana.settings import format_settings, parse_settings, settings_class
from carvana.weights import load_network
from conftest import PROJECT_DIR, SCRIPT_DIR
from PIL import Image
from tiny import draw_cars, tiny_run
from train import Config

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
]


@pytest.mark.parametrize("wrong, sentence", WRONG_VALUES)
def test_values_that_do_not_fit_a_setting_are_refused_in_a_sentence_also_as_defaults_in_the_file(wrong, sentence):
    # Users are told to edit the settings where they stand.
    [(name, value)] = wrong.items()
    edited = settings_class(type("Edited", (), {"__annotations__": {name: Config.__annotations__[name]}, name: value}))
    for make in (lambda: Config(**wrong), edited):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            make()


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(image_width=470), "multiples of 16, got 320x470 .* nearest size that works is 320x464"),
        (dict(kernel_size=4), "kernel_size must be odd, got 4"),
        (dict(test_image_dir="x"), "test_image_dir and test_mask_dir must be given together"),
        (dict(checkpoint_dir=DEFAULT_WEIGHTS.parent), "checkpoint_dir must be a folder of the run's own"),
        (dict(seeds=3), "^seeds is not a setting.$"),
        (dict(epochs="3", seed=None), "^epochs must .*\nseed must .*$"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_way_out(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**wrong)


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
    [("--lr", "--learning-rate"), ("--epoch", "--epochs"), ("--batch", "--batch-size"), ("--epcohs", "--epochs")],
)
def test_an_option_that_does_not_exist_is_answered_with_the_right_name(wrong, right, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_settings(Config, [wrong, "3"], None)
    assert capsys.readouterr().err == f"error: {wrong} is not an option. Did you mean {right}?\n"


def test_settings_that_are_not_the_defaults_are_marked_and_strings_will_do_for_paths():
    lines = format_settings(Config(epochs=3, cache_dir="x")).splitlines()
    assert "* epochs              3" in lines and "  batch_size          8" in lines
    assert "  train_image_dir     data/train" in lines and "* cache_dir           x" in lines


def test_the_loss_is_least_where_probability_equals_coverage():
    coverage = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    logits, known = torch.logit(coverage.clamp(1e-4, 1 - 1e-4)), torch.ones(1, 1, 2, 2)
    at_coverage = train.segmentation_loss(logits, coverage, known)
    for shift in (-0.5, 0.5):
        assert train.segmentation_loss(logits + shift, coverage, known) > at_coverage


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


@pytest.fixture(scope="module")
def finished(tiny_set, tmp_path_factory) -> tuple[Config, dict]:
    """A whole run, and what it returned."""
    changes = dict(base_width=8, batch_size=4, epochs=12, learning_rate=3e-3, ema_decay=0.8)
    config = Config(**tiny_run(tiny_set, tmp_path_factory.mktemp("run"), **changes))
    return config, train.train(config)


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_learns(finished):
    config, _ = finished
    history = read_table(config.checkpoint_dir / "history.csv")
    assert float(history[-1]["train_loss"]) < 0.5 * float(history[0]["train_loss"])
    card = json.loads((config.checkpoint_dir / "score_card.json").read_text())
    assert card["dice"] > 0.7 and card["black_dice"] == 0


def test_a_run_leaves_checkpoints_history_scores_and_pictures(finished):
    config, _ = finished
    names = "best last last.previous".split()
    tables = {"history.csv", "settings.json", "score_card.json", "scores.csv"}
    assert {path.name for path in config.checkpoint_dir.iterdir()} == {f"{name}.safetensors" for name in names} | tables
    rows = read_table(config.checkpoint_dir / "history.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    columns = "epoch train_loss val_loss val_dice learning_rate images_per_second data_wait seconds"
    assert list(rows[0]) == columns.split()
    pictures = {path.name for path in config.prediction_dir.iterdir()}
    assert pictures == {f"epoch_{n:03d}.png" for n in range(1, 13)} | {"worst.png", "views.png", "curves.png"}
    for path in config.prediction_dir.iterdir():
        with Image.open(path) as picture:
            assert picture.width > 150 and len(picture.getcolors(10**7)) > 20


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
        name, mask = f"{3 + number % 2:012x}_{number + 1:02d}", np.zeros((height, width), np.uint8)
        cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 4), 9, 0, 360, 255, -1)
        photo = rng.integers(90, 160, (height, width, 3), np.uint8) + mask[..., None] // 6
        Image.fromarray(photo).save(folder / "train" / f"{name}.jpg", quality=92)
        Image.fromarray(mask).save(folder / "train_masks" / f"{name}_mask.gif")
    changes = dict(image_width=96, image_height=64, batch_size=1, epochs=9, learning_rate=3e-3, ema_decay=0.5)
    config = Config(**tiny_run(folder, tmp_path, validation_share=0.5, precision="auto", **changes))
    summary = train.train(config)
    rows = read_table(config.checkpoint_dir / "scores.csv")
    photos = [folder / "train" / f"{row['name']}.jpg" for row in rows]
    for outputs in (["mask"], ["mask", "cutout", "overlay"]):
        masks, weights = tmp_path / f"masks_{len(outputs)}", config.checkpoint_dir / "best.safetensors"
        result = run_script("predict.py", *photos, "--weights", weights, "--output", masks, "--outputs", *outputs)
        assert result.returncode == 0, result.stderr
        truths = [load_mask(folder / "train_masks" / f"{photo.stem}_mask.gif") for photo in photos]
        found = [dice(load_mask(masks / f"{photo.stem}_mask.png"), mask) for photo, mask in zip(photos, truths)]
        assert found == pytest.approx([float(row["dice"]) for row in rows], abs=1e-6)
        assert np.mean(found) == pytest.approx(summary["dice"], abs=1e-6)
    assert 0.5 < summary["dice"] < 0.99, "or the test would see little"


def test_start_from_begins_with_the_weights_of_a_file_and_a_resumed_run_still_knows_it(finished, tmp_path):
    config, summary = finished
    changes = dict(start_from=config.checkpoint_dir / "best.safetensors", epochs=1, learning_rate=1e-9)
    again = dataclasses.replace(config, **changes, checkpoint_dir=tmp_path / "c", prediction_dir=tmp_path)
    assert train.train(again)["dice"] == pytest.approx(summary["dice"], abs=0.03)
    train.train(dataclasses.replace(again, start_from=None, epochs=2, load_model=True))
    described = load_network(tmp_path / "c/best.safetensors")[1].trained
    assert described["started_from"]["settings"]["epochs"] == config.epochs != described["settings"]["epochs"]


def test_test_folders_are_used_as_they_are_and_shared_cars_are_named(tiny_settings, tiny_set, capsys):
    config = Config(**tiny_settings, test_image_dir=tiny_set / "train", test_mask_dir=tiny_set / "train_masks")
    _, train_rows, validation_rows = train.prepare_data(config, quiet=False)
    assert (len(train_rows), len(validation_rows)) == (12, 12)
    assert "warning: 3 cars to test on are trained on, too" in capsys.readouterr().err


def test_the_command_line_prints_a_table_and_aligned_keys_and_scores_every_photo(tiny_args, tiny_settings, run_script):
    result = run_script("train.py", *tiny_args)
    assert result.returncode == 0, result.stderr
    head, tail = result.stdout.split("---\n")
    assert "   epoch  train_loss" in head
    # Other projects drop the last batch, here one photo of four, and then report Dice 0 for a small validation set.
    assert "score card at full resolution: 4 photos of 1 car" in head
    assert float(read_table(tiny_settings["checkpoint_dir"] / "history.csv")[0]["val_dice"]) > 0
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
    result = run_script("train.py", *tiny_args, *args, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr


# Runs train.py in each of two processes, and keeps the weights and the rows that it saw.
WATCHED = """
import os, runpy, sys, torch
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
import data, extra
seen, runs = [], []
real_item, real_start = data.CarDataset.__getitem__, extra.begin_run
def item(self, key):
    if self.augment:
        seen.append(key)
    return real_item(self, key)
def begin_run(run, rank):
    runs.append(run)
    return real_start(run, rank)
data.CarDataset.__getitem__, extra.begin_run = item, begin_run
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    torch.save((seen, dict(runs[0].network.named_parameters())), os.environ["RANK"] + ".pt")
"""


def test_two_processes_see_what_one_sees_end_with_equal_weights_and_score_each_photo_once(
    tiny_args, tiny_settings, tmp_path
):
    (tmp_path / "watched.py").write_text(WATCHED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "watched.py", SCRIPT_DIR / "train.py", *tiny_args]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("---\n") == 1, "one process writes"
    rows = read_table(tiny_settings["checkpoint_dir"] / "scores.csv")
    assert len(rows) == len({row["name"] for row in rows}) == 4
    (seen, weights), (others_seen, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    rows = sorted({row for _, row in seen + others_seen})
    assert len(rows) == 8 and not set(seen) & set(others_seen)
    assert sorted(seen + others_seen) == [(epoch, row) for epoch in range(2) for row in rows]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
