"""Each benchmark of speed or memory runs on tiny data and prints its line. What it measures is nobody's to assert:
machines differ."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run_benchmark(name: str, *arguments, folder: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, BENCHMARKS / name, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=environment, cwd=folder, check=False
    )


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("train_step.py", "training step, 48x32"),
        ("cache.py --photos train --masks train_masks", "first pass into the cache, photos of train"),
        ("epochs_data.py", "data of a later epoch"),
        ("prediction.py --photos train", "prediction: photos of train to masks"),
        ("waiting.py", "share of an epoch waiting for data"),
        ("memory.py", "peak memory of training"),
        ("accuracy.py", "Dice at the photos' own size"),
    ],
)
def test_a_benchmark_measures_both_ways_and_gives_their_ratio(tmp_path, tiny_set, script, line):
    results = tmp_path / "results.csv"
    script, *own_photos = script.split()
    done = run_benchmark(
        script, *own_photos, "--quick", "--pairs", 1, "--work-dir", tmp_path, "--results", results, folder=tiny_set
    )
    assert done.returncode == 0, done.stderr
    assert line in done.stdout and "times (" in done.stdout
    assert results.read_text().startswith("date,commit,question,setting,textbook,ours,unit,ratio")
    table = run_benchmark("table.py", results)
    assert table.returncode == 0 and "| question | setting |" in table.stdout and line.split(",")[0] in table.stdout


def test_without_a_gpu_the_gpu_benchmark_says_so_and_writes_nothing(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        BENCHMARKS / "gpu.py",
        "--work-dir",
        tmp_path / "work",
        "--results",
        tmp_path / "results.csv",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "not measured: no CUDA device\n")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_in_one_sentence(tmp_path):
    (tmp_path / "drawn_96x64_12").mkdir()  # a folder of photos without photos
    done = run_benchmark("cache.py", "--quick", "--pairs", 1, "--work-dir", tmp_path)
    assert done.returncode == 1 and "train is not a folder" in done.stderr and "Traceback" not in done.stderr
    done = run_benchmark("cache.py", "--quick", "--photos", tmp_path, "--work-dir", tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: photos and masks must be named together, got one of them.\n")
