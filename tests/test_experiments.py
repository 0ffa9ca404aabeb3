"""The study: its grid, its runs, its comparison; and the report that is made of it."""

import dataclasses
import json
import subprocess
import sys

import extra
import numpy as np
import pytest
import train
from carvana.files import PROJECT_DIR, write_table
from carvana.settings import to_arguments
from conftest import draw_cars, kill_when

import experiments
from experiments import Settings

sys.path.insert(0, str(PROJECT_DIR / "memory"))

import build


def small_settings(cars, output_dir) -> Settings:
    """Settings of trainings that take seconds."""
    return Settings(
        train_image_dir=cars / "train",
        train_mask_dir=cars / "train_masks",
        image_width=48,
        image_height=32,
        base_width=2,
        epochs=4,
        only=("rate_3e-3",),
        device="cpu",
        output_dir=output_dir,
        cache_dir=output_dir.parent / "cache",
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The settings of a finished study of two runs."""
    folder = tmp_path_factory.mktemp("study")
    settings = small_settings(draw_cars(folder / "cars"), folder / "experiments")
    experiments.main(settings)
    return settings


def write_run(folder, last: dict[tuple[str, int], float], **changes) -> None:
    """Write the files of a finished run with the Dice given by (car, view)."""
    folder.mkdir(parents=True)
    facts = dict(settings=extra.settings_of_result(train.Config(**changes)), last_dice=np.mean([*last.values()]))
    costs = ("parameters", "gflop", "seconds_per_epoch", "peak_memory_mib", "best_dice")
    facts |= dict.fromkeys((*costs, "n_validation_photos", "n_validation_cars"), 1)
    (folder / "run.json").write_text(json.dumps(facts))
    photos = [dict(car=car, view=view, best=dice, last=dice) for (car, view), dice in last.items()]
    write_table(folder / "dice.csv", photos)
    write_table(folder / "history.csv", [dict(epoch=epoch, val_loss=1 / epoch, val_dice=0.5) for epoch in (1, 2)])


# ---------------------------------------------------------------------------------------------------------- the grid


def test_each_run_differs_from_the_baseline_in_one_setting():
    baseline, *others = map(extra.settings_of_result, experiments.list_configs(Settings()))
    changes = [[key for key in baseline if other[key] != baseline[key]] for other in others]
    assert sorted(changes) == [["batch_size"], ["kernel_size"], ["learning_rate"], ["learning_rate"], ["learning_rate"]]


def test_some_runs_can_be_chosen():
    configs = experiments.list_configs(Settings(only=("kernel_5",), seed=3))
    runs = [(config.checkpoint_dir.name, config.seed, config.kernel_size) for config in configs]
    assert runs == [("baseline", 3, 3), ("kernel_5", 3, 5)]
    with pytest.raises(ValueError, match="only.0 must be 'baseline', .*, got 'kernel_7'"):
        Settings(only=("kernel_7",))


# ---------------------------------------------------------------------------------------------------------- the runs


def test_a_study_leaves_for_each_run_what_can_be_shared_and_names_no_photo_and_no_folder(study):
    shared = [study.output_dir / name for name in ("results.csv", "curves.svg", "differences.svg")]
    for name in ("baseline", "rate_3e-3"):
        folder = study.output_dir / name
        run = experiments.load_run(folder)
        assert (len(run.history), len(run.dice)) == (4, 4)  # epochs; the views of the one car set aside
        assert run.facts["best_dice"] == pytest.approx(run.facts["score_card"]["dice"])
        assert run.facts["peak_memory_mib"] > 50
        shared += [folder / file for file in ("run.json", "history.csv", "dice.csv")]
        assert {photo["car"] for photo in run.dice} <= {"1", "2", "3"}
    names = [path.stem for path in study.train_image_dir.iterdir()]
    for path in shared:
        text = path.read_text()
        assert text and not any(word in text for word in (*names, str(study.output_dir.parent)))


def test_git_keeps_what_can_be_shared_and_ignores_the_rest():
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=PROJECT_DIR).returncode == 0

    for name in ("best.safetensors", "last.safetensors", "scores.csv", "settings.json", "pictures/worst.png"):
        assert ignored(f"experiments/baseline/{name}"), name
    for name in ("baseline/run.json", "baseline/history.csv", "baseline/dice.csv", "results.csv", "curves.svg"):
        assert not ignored(f"experiments/{name}"), name


def test_finished_runs_are_skipped(study, capsys):
    before = {path: path.stat().st_mtime_ns for path in study.output_dir.glob("*/*.safetensors")}
    experiments.main(study)
    assert capsys.readouterr().out.count("finished before") == 2
    assert {path: path.stat().st_mtime_ns for path in study.output_dir.glob("*/*.safetensors")} == before


def test_a_study_that_was_killed_goes_on_to_the_same_rows(study, tmp_path):
    settings = dataclasses.replace(study, output_dir=tmp_path / "experiments", only=("baseline",))
    command = [sys.executable, PROJECT_DIR / "scripts/experiments.py", *to_arguments(vars(settings))]
    kill_when((settings.output_dir / "baseline/history.csv").exists, command)  # written after the first epoch
    assert not (settings.output_dir / "baseline/run.json").exists()
    experiments.main(settings)
    assert len({(one.output_dir / "baseline/dice.csv").read_bytes() for one in (settings, study)}) == 1


def test_a_run_that_fails_does_not_lose_the_others(study, tmp_path, capsys):
    broken = dataclasses.replace(study, output_dir=tmp_path / "experiments", epochs=1)
    (broken.output_dir / "baseline").mkdir(parents=True)
    (broken.output_dir / "baseline/last.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RuntimeError, match="baseline failed, see above. The same command tries again"):
        experiments.main(broken)
    assert "baseline failed: " in capsys.readouterr().err
    assert experiments.load_run(broken.output_dir / "rate_3e-3").facts["best_dice"] >= 0


def test_a_folder_with_another_run_or_one_on_other_photos_is_refused(study, tmp_path):
    refusal = "must hold a run with base_width 4, got 2. Delete it, or name another --output"
    with pytest.raises(ValueError, match=refusal):
        experiments.main(dataclasses.replace(study, base_width=4))
    with pytest.raises(ValueError, match="must hold a run with data_fingerprint"):
        experiments.main(small_settings(draw_cars(tmp_path / "cars", n_cars=4), study.output_dir))


def test_the_committed_runs_are_those_of_the_documented_command():
    configs = experiments.list_configs(Settings(base_width=16, image_width=240, image_height=160))
    runs = experiments.load_study(PROJECT_DIR / "experiments")
    for config, run in zip(configs, runs, strict=True):
        now = extra.settings_of_result(config)
        assert config.checkpoint_dir.name == run.name
        assert {key: now[key] for key in run.facts["settings"]} == run.facts["settings"]


# ---------------------------------------------------------------------------------------------------- the comparison


def test_a_difference_shared_by_all_cars_differs_and_one_that_wavers_is_noise(tmp_path):
    baseline = {(str(car), view): 0.9 + 0.01 * car for car in range(8) for view in (1, 2)}
    wavering = {(car, view): value + (0.01 if int(car) % 2 else -0.01) for (car, view), value in baseline.items()}
    write_run(tmp_path / "baseline", baseline)
    write_run(tmp_path / "kernel_5", {key: value + 0.001 for key, value in baseline.items()}, kernel_size=5)
    write_run(tmp_path / "batch_16", wavering, batch_size=16)
    base, batch, kernel = experiments.compare(experiments.load_study(tmp_path))
    assert (kernel["name"], kernel["difference"], kernel["verdict"]) == ("kernel_5", pytest.approx(0.001), "differs")
    assert (batch["name"], batch["difference"], batch["verdict"]) == ("batch_16", pytest.approx(0, abs=1e-12), "noise")
    assert base["difference"] is None
    # Cars differ by far more than the runs do: pairing is what shows the small difference.
    assert kernel["last_low"] < base["last_dice"] < kernel["last_high"]


def test_views_of_one_car_are_not_counted_as_independent(tmp_path):
    write_run(tmp_path / "baseline", {("1", view): 0.9 for view in range(1, 17)})
    write_run(tmp_path / "kernel_5", {("1", view): 0.8 for view in range(1, 17)}, kernel_size=5)
    assert experiments.compare(experiments.load_study(tmp_path))[1]["verdict"] == "too few cars"


def test_figures_of_equal_rows_are_equal_files(tmp_path, capsys):
    write_run(tmp_path / "baseline", {(str(car), 1): 0.9 for car in range(8)})
    write_run(tmp_path / "kernel_5", {(str(car), 1): 0.91 for car in range(8)}, kernel_size=5)
    contents = []
    for _ in range(2):
        experiments.main(Settings(show=True, output_dir=tmp_path))
        contents.append([(tmp_path / name).read_bytes() for name in ("results.csv", "curves.svg", "differences.svg")])
    assert contents[0] == contents[1]
    printed = capsys.readouterr().out
    assert "+10.000" in printed and "One training of each kind" in printed


def test_showing_nothing_says_what_to_do_and_a_damaged_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="must hold a finished baseline. Run `python scripts/experiments.py` first"):
        experiments.main(Settings(show=True, output_dir=tmp_path))
    write_run(tmp_path / "baseline", {("1", 1): 0.9})
    (tmp_path / "baseline/run.json").write_text('{"settings"')
    with pytest.raises(ValueError, match="baseline does not hold a whole run"):
        experiments.load_study(tmp_path)


# --------------------------------------------------------------------------------------------------------- the report


def test_the_report_is_built_from_the_committed_rows(tmp_path):
    pytest.importorskip("typst")
    build.build(build.Settings(output=tmp_path / "memory.pdf"))
    assert (tmp_path / "memory.pdf").read_bytes().startswith(b"%PDF")


def test_parameters_by_kind_add_up_to_the_papers_network():
    assert sum(build.count_parameters(3, 64).values()) == 31_037_633
