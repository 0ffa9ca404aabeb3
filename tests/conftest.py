"""What tests share: a data set of a few drawn cars, the settings of a run of seconds, and a way to start scripts."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import draw_cars, tiny_run

PROJECT_DIR = Path(__file__).resolve().parents[1]
SCRIPT_DIR = PROJECT_DIR / "scripts"
sys.path.insert(0, str(SCRIPT_DIR))
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core: more threads would wait for each other
    # pytest-xdist ignores it, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from carvana.machine import process_context
from carvana.settings import to_arguments

from data import Pair, require_pairs

# The files that take longest start first: the suite then does not end with one process at work and the others idle.
SLOWEST = "test_resume test_benchmarks test_notebook test_train test_experiments test_app test_export".split()


def pytest_xdist_auto_num_workers() -> int:
    """Take a process more than cores: many tests wait, for a signal, a browser or a disk."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST)
    items.sort(key=rank)


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    """A folder with train/ and train_masks/: 3 cars of 4 views, 96x64. Shared by all tests: copy it to change it."""
    return draw_cars(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def pairs(tiny_set) -> list[Pair]:
    """The photos and masks of that folder."""
    return require_pairs(tiny_set / "train", tiny_set / "train_masks")


@pytest.fixture
def tiny_settings(tiny_set, tmp_path) -> dict:
    """Settings of a run of seconds, as keywords of train.Config; it leaves its files in tmp_path."""
    return tiny_run(tiny_set, tmp_path)


@pytest.fixture
def tiny_args(tiny_settings) -> list[str]:
    """The same settings as arguments of train.py."""
    return to_arguments(tiny_settings)


def kill_when(is_time: Callable[[], bool], command: list) -> None:
    """Run a command, and `kill -9` it and its processes once it has come as far as a test waits for."""
    outputs = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([*map(str, command)], start_new_session=True, **outputs)
    until = time.monotonic() + 300
    while not is_time():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def enter_script(name: str, args: list[str], folder: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    """Become `python scripts/<name> *args`, writing what it prints to two files."""
    os.environ.clear(), os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [str(SCRIPT_DIR / name), *args]
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.fixture
def run_script(tmp_path_factory):
    """Run `python scripts/<name> *args` to its end in a process of its own, with one thread and the packages imported;
    return the CompletedProcess, output as text."""

    def run(
        name: str, *args, cwd: Path = PROJECT_DIR, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        outputs = [tmp_path_factory.mktemp("output") / stream for stream in ("stdout", "stderr")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in (env or {}).items()}}
        process = process_context().Process(
            target=enter_script, args=(name, [*map(str, args)], cwd, environment, outputs)
        )
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            pytest.fail(f"{name} did not end within 300 seconds")
        return subprocess.CompletedProcess([name, *args], process.exitcode, *(path.read_text() for path in outputs))

    return run
