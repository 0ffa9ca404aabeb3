"""Benchmarks run on tiny data and print their lines. What they measure is nobody's to assert: machines differ."""

import os
import subprocess
import sys

import pytest
from conftest import PROJECT_DIR


def run_benchmark(name: str, *arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, PROJECT_DIR / "benchmarks" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.mark.parametrize(
    "script, line",
    [
        ("loading.py --photos {0}/train --masks {0}/train_masks", "first pass into the cache"),
        ("prediction.py --photos {0}/train", "prediction: masks"),
        ("gpu.py --device cpu", "training step, 48x32"),
    ],
)
def test_a_benchmark_measures_both_ways_and_reports_their_ratio(tmp_path, tiny_set, script, line):
    results = tmp_path / "results.csv"
    options = "--quick", "--pairs", 1, "--work-dir", tmp_path, "--results", results
    done = run_benchmark(*script.format(tiny_set).split(), *options)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout and "times (" in done.stdout
    assert results.read_text().startswith("date,commit,question,setting,baseline,ours,unit,ratio")
    table = run_benchmark("common.py", results)
    assert table.returncode == 0 and "| question | setting |" in table.stdout and line.split(",")[0] in table.stdout
    if script.startswith("gpu"):
        first = next(line for line in done.stdout.splitlines() if not line.startswith("  training "))
        assert first.startswith("killed and resumed, fp16: 0 of "), "first, since a GPU's time may run out"


def test_people_s_ways_are_scored_on_the_same_photos(tmp_path, tiny_set):
    photos = "--photos", tiny_set / "train", "--masks", tiny_set / "train_masks"
    done = run_benchmark("peers.py", *photos, "--limit", 2, "--work-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| ours | " in done.stdout and "| baseline | " in done.stdout


def test_without_a_gpu_its_benchmark_says_so_and_writes_nothing(tmp_path):
    done = run_benchmark("gpu.py", "--work-dir", tmp_path / "work", "--results", tmp_path / "results.csv")
    assert (done.returncode, done.stdout) == (0, "not measured: no CUDA device\n")
    assert not (tmp_path / "results.csv").exists()


def test_a_mistake_is_one_sentence(tmp_path):
    done = run_benchmark("loading.py", "--quick", "--photos", tmp_path, "--work-dir", tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: photos and masks must be named together, got one of them.\n")
