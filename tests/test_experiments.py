import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import extra
import numpy as np
import pytest
import train
from carvana import files
from PIL import Image

import experiments
from experiments import Settings

PROJECT_DIR = Path(experiments.__file__).parents[1]
sys.path.insert(0, str(PROJECT_DIR / "memory"))

import build  # noqa: E402
import leak  # noqa: E402


def draw_cars(folder: Path, n_cars: int = 3, n_views: int = 4) -> Path:
    """Make photos of 48x32 pixels on which a bright ellipse is the car."""
    (folder / "train").mkdir(parents=True), (folder / "train_masks").mkdir()
    rows, columns = np.mgrid[:32, :48]
    for car in range(n_cars):
        for view in range(1, n_views + 1):
            rng = np.random.default_rng((car, view))
            mask = ((rows - 16) / rng.uniform(5, 10)) ** 2 + ((columns - 24) / rng.uniform(10, 20)) ** 2 < 1
            photo = np.where(mask[..., None], 200, 60) + rng.integers(-30, 30, (32, 48, 3))
            name = f"{car + 0xCAFE00000000:012x}_{view:02d}"
            Image.fromarray(photo.astype(np.uint8)).save(folder / f"train/{name}.jpg")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"train_masks/{name}_mask.gif")
    return folder


def small_settings(cars: Path, output_dir: Path) -> Settings:
    return Settings(
        train_image_dir=cars / "train",
        train_mask_dir=cars / "train_masks",
        image_width=48,
        image_height=32,
        base_width=2,
        epochs=3,
        device="cpu",
        output_dir=output_dir,
        cache_dir=output_dir.parent / "cache",
    )


def start_study(settings: Settings, names=("baseline", "rate_3e-3"), pause: float = 0) -> subprocess.Popen:
    """Start a study of fewer runs in a process of its own, which pauses so many seconds in each epoch."""
    arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()}
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PROJECT_DIR / "scripts")!r})
import time
import experiments, extra, train
validate = train.validate
train.validate = lambda *arguments: time.sleep({pause}) or validate(*arguments)
experiments.GRID = {{name: experiments.GRID[name] for name in {names!r}}}
settings = {{key: Path(value) if key.endswith("_dir") else value for key, value in {arguments!r}.items()}}
if __name__ == "__main__":
    extra.run_command(lambda _: experiments.main(experiments.Settings(**settings)), [])
"""
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    script = settings.output_dir.parent / f"{settings.output_dir.name}.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of two runs: its settings, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    settings = small_settings(draw_cars(folder / "cars"), folder / "experiments")
    process = start_study(settings)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return settings, printed


def write_run(folder: Path, last: dict[tuple[str, int], float], n_epochs: int = 2, **changes) -> None:
    """Write the files of a finished run with the Dice given by (car, view)."""
    config = train.Config(epochs=n_epochs, **changes)
    folder.mkdir(parents=True)
    facts = dict(
        settings=experiments.shareable(config),
        data_fingerprint="0",
        parameters=10,
        gflop=1.5,
        seconds_per_epoch=2.0,
        peak_memory_mib=3.0,
        n_validation_photos=len(last),
        n_validation_cars=len({car for car, _ in last}),
    )
    (folder / "run.json").write_text(json.dumps(facts))
    photos = [dict(car=car, view=view, best=dice, last=dice, ceiling=1.0) for (car, view), dice in last.items()]
    extra.write_table(folder / "dice.csv", photos)
    history = [dict(epoch=epoch, val_loss=1 / epoch, val_dice=1 - 0.1 / epoch) for epoch in range(1, n_epochs + 1)]
    extra.write_table(folder / "history.csv", history)


def even_dice(value: float, n_cars: int = 8) -> dict[tuple[str, int], float]:
    return {(str(car), view): value for car in range(n_cars) for view in (1, 2)}


# ------------------------------------------------------------------------------------------------------------ the grid


def test_each_run_differs_from_the_baseline_in_one_setting():
    baseline, *others = experiments.list_configs(Settings())
    assert len(others) == 5
    changes = [
        [key for key in experiments.BASELINE if getattr(config, key) != getattr(baseline, key)] for config in others
    ]
    assert sorted(changes) == [["batch_size"], ["kernel_size"], ["learning_rate"], ["learning_rate"], ["learning_rate"]]
    for config in others:
        for key in set(experiments.shareable(baseline)) - set(experiments.BASELINE):
            assert getattr(config, key) == getattr(baseline, key)


def test_equal_steps_adds_the_other_batch_size_for_as_many_steps():
    configs = {config.checkpoint_dir.name: config for config in experiments.list_configs(Settings(equal="steps"))}
    assert len(configs) == 7
    assert configs["batch_16"].epochs == 10
    assert configs["batch_16_equal_steps"].epochs == 20
    assert configs["batch_16_equal_steps"].batch_size == 16


def test_seeds_repeat_every_run_in_a_folder_of_its_own():
    configs = experiments.list_configs(Settings(seeds=3))
    assert len({config.checkpoint_dir for config in configs}) == 18
    assert {config.seed for config in configs if config.checkpoint_dir.name.startswith("kernel_5")} == {0, 1, 2}


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="seeds must be from 1 to 100, got 0"):
        Settings(seeds=0)
    with pytest.raises(ValueError, match="multiples of 16, got 320x481"):
        experiments.list_configs(Settings(image_width=481))


def test_flop_are_those_of_the_sum_over_all_convolutions():
    config = train.Config(base_width=2, kernel_size=5, image_width=32, image_height=16)
    n_pixels, expected = 32 * 16, 0
    widths = [2, 4, 8, 16, 32]
    for level, width in enumerate(widths):
        pixels = n_pixels // 4**level
        narrow = widths[level - 1] if level else 3
        expected += 2 * 25 * pixels * (narrow * width + width * width)  # on the way down
        if level < 4:
            expected += 2 * pixels * 2 * width * width  # up-convolution: one pixel below reaches each pixel here
            expected += 2 * 25 * pixels * (2 * width * width + width * width)
    assert experiments.count_flop(config) == expected + 2 * n_pixels * 2


# ------------------------------------------------------------------------------------------------------------ the runs


def test_a_study_leaves_for_each_run_what_the_report_needs(study):
    settings, printed = study
    for name in ("baseline", "rate_3e-3"):
        folder = settings.output_dir / name
        for file in (
            "settings.json",
            "history.csv",
            "score_card.json",
            "scores.csv",
            "best.pt",
            "last.pt",
            "run.json",
            "dice.csv",
        ):
            assert (folder / file).is_file(), file
        run = experiments.load_run(folder)
        assert len(run.history) == 3
        assert len(run.dice) == 4  # the views of the one car set aside
        assert run.facts["parameters"] == sum(p.numel() for p in extra.load_network(folder / "last.pt")[0].parameters())
        assert run.facts["peak_memory_mib"] > 50
        assert run.facts["best_dice"] == pytest.approx(run.facts["score_card"]["dice"])
        assert name in printed
    for file in ("results.csv", "curves.svg", "differences.svg"):
        assert (settings.output_dir / file).stat().st_size > 100


def test_what_can_be_shared_names_no_photo_and_no_folder(study):
    settings, _ = study
    patterns = ("*/run.json", "*/history.csv", "*/dice.csv", "results.csv")
    shared = [path for pattern in patterns for path in settings.output_dir.glob(pattern)]
    assert len(shared) == 7
    for path in shared:
        assert "cafe0000" not in path.read_text()
        assert str(settings.output_dir.parent) not in path.read_text()


def test_git_keeps_what_can_be_shared_and_ignores_the_rest():
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=PROJECT_DIR).returncode == 0

    for name in ("best.pt", "last.pt", "scores.csv", "settings.json", "pictures/worst.png", "score_card.json"):
        assert ignored(f"experiments/baseline/{name}"), name
    for name in ("baseline/run.json", "baseline/history.csv", "baseline/dice.csv", "results.csv", "curves.svg"):
        assert not ignored(f"experiments/{name}"), name


def test_last_dice_is_that_of_the_last_weights(study):
    settings, _ = study
    config = replace(experiments.list_configs(settings)[0], load_model=False)
    cache, _, rows = train.prepare_data(config, quiet=True)
    scored = experiments.score_weights(config.checkpoint_dir / "last.pt", config, cache, rows)
    run = experiments.load_run(config.checkpoint_dir)
    assert [row["last"] for row in run.dice] == pytest.approx([row["dice"] for row in scored], abs=1e-3)


def test_finished_runs_are_skipped(study, monkeypatch, capsys):
    settings, printed = study
    before = {path: path.stat().st_mtime_ns for path in settings.output_dir.glob("*/*.pt")}
    monkeypatch.setattr(experiments, "GRID", {name: experiments.GRID[name] for name in ("baseline", "rate_3e-3")})
    experiments.main(settings)
    printed_again = capsys.readouterr().out
    assert printed_again.count("finished before") == 2
    assert {path: path.stat().st_mtime_ns for path in settings.output_dir.glob("*/*.pt")} == before
    assert printed_again.splitlines()[-5:] == printed.splitlines()[-5:]  # the table


def test_a_study_stopped_twice_goes_on_to_the_same_rows(study, tmp_path):
    settings, _ = study
    stopped = replace(settings, output_dir=tmp_path / "experiments")
    history = stopped.output_dir / "baseline/history.csv"
    for epochs, number in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        process = start_study(
            stopped, names=("baseline",), pause=3
        )  # there is time for the signal before the last epoch ends
        wait_for(
            lambda: process.poll() is not None or (history.exists() and len(history.read_text().splitlines()) > epochs)
        )
        process.send_signal(number)
        process.communicate(timeout=300)
        assert process.returncode == 128 + number
        assert (stopped.output_dir / "baseline/last.pt").exists()
    process = start_study(stopped, names=("baseline",))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    folders = stopped.output_dir / "baseline", settings.output_dir / "baseline"
    assert len({(folder / "dice.csv").read_bytes() for folder in folders}) == 1
    assert len({extra.digest(extra.read_checkpoint(folder / "last.pt")["weights"]) for folder in folders}) == 1


def test_a_run_that_fails_does_not_lose_the_others(study, tmp_path):
    settings, _ = study
    broken = replace(settings, output_dir=tmp_path / "experiments", epochs=1)
    (broken.output_dir / "baseline").mkdir(parents=True)
    (broken.output_dir / "baseline/last.pt").write_bytes(b"not a checkpoint")
    process = start_study(broken)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "last.pt is damaged" in errors
    assert "error: 1 of 2 runs failed: baseline. The same command tries them again." in errors
    assert "not finished: baseline" in printed
    assert experiments.load_run(broken.output_dir / "rate_3e-3").facts["best_dice"] >= 0


def test_the_projects_own_runs_are_those_of_the_documented_command():
    settings = experiments.Settings(base_width=16, image_width=240, image_height=160)
    for config in experiments.list_configs(settings):
        experiments.check_same_run(
            config.checkpoint_dir, experiments.load_run(config.checkpoint_dir).facts["settings"], config
        )
    assert len(experiments.load_study(settings.output_dir)) == len(experiments.GRID)


def test_a_folder_with_another_run_is_refused(study):
    settings, _ = study
    with pytest.raises(
        ValueError, match="must hold a run with base_width 4, got 2. Delete it, or name another --output-dir"
    ):
        experiments.main(replace(settings, base_width=4))


def test_a_folder_with_a_run_on_other_photos_is_refused(study, tmp_path):
    settings, _ = study
    cars = draw_cars(tmp_path / "cars", n_cars=4)
    other = replace(
        settings, train_image_dir=cars / "train", train_mask_dir=cars / "train_masks", cache_dir=tmp_path / "cache"
    )
    with pytest.raises(ValueError, match="must hold a run on these photos, got one on others"):
        experiments.main(other)


def test_a_folder_in_use_by_another_training_is_left_in_peace(study, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0)
    settings, _ = study
    used = replace(settings, output_dir=tmp_path / "experiments")
    with files.lock_folder(used.output_dir / "baseline"):
        with pytest.raises(RuntimeError, match="in use by another training"):
            experiments.main(used)


# -------------------------------------------------------------------------------------------------------- the comparison


def test_a_difference_shared_by_all_cars_differs_and_one_that_wavers_is_noise(tmp_path):
    baseline = {(str(car), view): 0.9 + 0.01 * car for car in range(8) for view in (1, 2)}
    write_run(tmp_path / "baseline", baseline)
    write_run(tmp_path / "kernel_5", {key: value + 0.001 for key, value in baseline.items()}, kernel_size=5)
    wavering = {(car, view): value + (0.01 if int(car) % 2 else -0.01) for (car, view), value in baseline.items()}
    write_run(tmp_path / "batch_16", wavering, batch_size=16)
    table = {row["name"]: row for row in experiments.compare(experiments.load_study(tmp_path))}
    assert list(table) == ["baseline", "batch_16", "kernel_5"]
    assert table["kernel_5"]["difference"] == pytest.approx(0.001)
    assert table["kernel_5"]["verdict"] == "differs"
    assert table["batch_16"]["difference"] == pytest.approx(0, abs=1e-12)
    assert table["batch_16"]["verdict"] == "noise"
    assert table["baseline"]["difference"] == ""
    # Cars differ by far more than the runs do: pairing is what shows the small difference.
    assert table["kernel_5"]["last_low"] < table["baseline"]["last_dice"] < table["kernel_5"]["last_high"]


def test_views_of_one_car_are_not_counted_as_independent(tmp_path):
    write_run(tmp_path / "baseline", {("1", view): 0.9 for view in range(1, 17)})
    write_run(tmp_path / "kernel_5", {("1", view): 0.8 for view in range(1, 17)}, kernel_size=5)
    row = experiments.compare(experiments.load_study(tmp_path))[1]
    assert row["verdict"] == "too few cars"


def test_seeds_that_disagree_are_noise(tmp_path):
    for seed, change in enumerate((0.02, -0.001)):
        suffix = f"_seed{seed}" if seed else ""
        write_run(tmp_path / f"baseline{suffix}", even_dice(0.9), seed=seed)
        write_run(tmp_path / f"kernel_5{suffix}", even_dice(0.9 + change), seed=seed, kernel_size=5)
    row = experiments.compare(experiments.load_study(tmp_path))[1]
    assert row["seeds"] == 2
    assert row["difference"] == pytest.approx(0.0095)
    assert row["difference_per_seed"] == "+0.02000 -0.00100"
    assert row["difference_low"] > 0
    assert row["verdict"] == "noise"


def test_runs_of_two_studies_are_not_compared(tmp_path):
    write_run(tmp_path / "baseline", even_dice(0.9))
    write_run(tmp_path / "kernel_5", even_dice(0.9), kernel_size=5, image_width=240)
    with pytest.raises(ValueError, match="must share image_width, got 240 and 480"):
        experiments.load_study(tmp_path)


def test_runs_scored_on_other_photos_are_not_compared(tmp_path):
    write_run(tmp_path / "baseline", even_dice(0.9))
    write_run(tmp_path / "kernel_5", even_dice(0.9, n_cars=7), kernel_size=5)
    with pytest.raises(ValueError, match="kernel_5 and baseline must be scored on the same photos"):
        experiments.compare(experiments.load_study(tmp_path))


def test_showing_nothing_says_what_to_do(tmp_path):
    with pytest.raises(
        ValueError, match="must hold a finished run, got none. Run `python scripts/experiments.py` first"
    ):
        experiments.main(Settings(show=True, output_dir=tmp_path))


def test_a_damaged_run_is_named(tmp_path):
    write_run(tmp_path / "baseline", even_dice(0.9))
    (tmp_path / "baseline/run.json").write_text('{"settings"')
    with pytest.raises(ValueError, match="baseline does not hold a whole run"):
        experiments.load_study(tmp_path)


def test_figures_of_equal_rows_are_equal_files(tmp_path, capsys):
    write_run(tmp_path / "baseline", even_dice(0.9))
    write_run(tmp_path / "kernel_5", even_dice(0.91), kernel_size=5)
    contents = []
    for _ in range(2):
        experiments.main(Settings(show=True, output_dir=tmp_path))
        contents.append([(tmp_path / name).read_bytes() for name in ("results.csv", "curves.svg", "differences.svg")])
    assert contents[0] == contents[1]
    printed = capsys.readouterr().out
    assert "+0.01000" in printed
    assert "not finished: rate_3e-3, rate_3e-4, rate_1e-4, batch_16" in printed
    assert "one training of each kind" in printed


# ------------------------------------------------------------------------------------------------------------ the report


def test_the_report_refuses_to_be_built_without_its_rows(tmp_path):
    pytest.importorskip("typst")
    with pytest.raises(ValueError, match=r"lacks baseline/run.json .*\(`python scripts/experiments.py`\)"):
        build.build(build.Settings(results_dir=tmp_path, output=tmp_path / "memory.pdf"))
    assert not (tmp_path / "memory.pdf").exists()


def test_shapes_and_fields_of_view_are_those_of_the_paper():
    assert build.paper_sizes(572) == [568, 280, 136, 64, 28, 52, 100, 196, 388]  # its figure 1
    assert build.receptive_field(3) == 140


def test_parameters_by_kind_add_up_to_the_networks():
    assert sum(build.count_parameters(3, 64).values()) == 31_037_633


def test_the_leaks_two_trainings_differ_in_the_scored_cars_views_alone(tmp_path):
    cars = draw_cars(tmp_path, n_cars=10, n_views=6)
    pairs = leak.require_pairs(cars / "train", cars / "train_masks")
    parts = leak.divide(pairs, seed=0)
    tested = {pair.car for pair in parts["test"]}
    assert len(parts["test"]) == leak.TEST_VIEWS * len(tested)
    assert len(parts["by_car"]) == len(parts["by_image"])
    assert not tested & {pair.car for pair in parts["by_car"]}
    assert tested < {pair.car for pair in parts["by_image"]}
    assert not {pair.name for pair in parts["test"]} & {pair.name for pair in parts["by_image"]}


def test_the_leaks_folders_hold_links_to_their_pairs_alone(tmp_path):
    cars = draw_cars(tmp_path, n_cars=2, n_views=3)
    pairs = leak.require_pairs(cars / "train", cars / "train_masks")
    for part in (pairs, pairs[:2]):
        leak.link_pairs(part, tmp_path / "links")
        linked = leak.require_pairs(tmp_path / "links/train", tmp_path / "links/train_masks")
        assert [pair.name for pair in linked] == [pair.name for pair in part]
    assert len(list((cars / "train").iterdir())) == 6  # what the links pointed to is still there


def test_too_few_views_for_the_leak_are_refused(tmp_path):
    cars = draw_cars(tmp_path, n_cars=3, n_views=4)
    with pytest.raises(ValueError, match="each car must have more than 4 photos, got 4"):
        leak.divide(leak.require_pairs(cars / "train", cars / "train_masks"), seed=0)
