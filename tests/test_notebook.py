"""The notebook: thin, free of outputs, run from top to bottom, twice, then with a training that goes on."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import PROJECT_DIR
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = PROJECT_DIR / "CarvanaUNET.ipynb"
# The same notebook, small: fewer cars, a narrower network, fewer epochs.
SMALL = {
    'CARS, STUDIO_SIZE = 12, "480x320"': 'CARS, STUDIO_SIZE = 3, "96x64"',
    "else (240, 160)": "else (96, 64)",
    "else (16, 12)": "else (4, 2)",
    "--epochs 2 --limit 192": "--epochs 1 --limit 32",
}


def cells(kind):
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == kind]


def test_cells_are_short_hold_no_functions_and_carry_no_outputs():
    for cell in cells("code"):
        assert len([line for line in cell.source.splitlines() if line.strip()]) <= 10, cell.source
        assert "def " not in cell.source and "class " not in cell.source
        assert cell.outputs == [] and cell.execution_count is None


def test_each_code_cell_is_introduced_in_words():
    kinds = [cell.cell_type for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    assert all(before == "markdown" for before, kind in zip(kinds, kinds[1:]) if kind == "code")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project as a fresh clone has it, the notebook made small."""
    folder = tmp_path_factory.mktemp("clone") / "CarvanaUNET"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if (PROJECT_DIR / name).is_file() and not name.startswith((".", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_DIR / name, folder / name)
    for name in ("data", "checkpoints", "predictions"):
        (folder / name).mkdir(exist_ok=True)
    return folder


def change(folder, changes):
    """Give the notebook of the copy other settings."""
    notebook = nbformat.read(folder / "CarvanaUNET.ipynb", as_version=4)
    for cell in notebook.cells:
        for old, new in changes.items():
            cell.source = cell.source.replace(old, new)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert all(new in source for new in changes.values()), "the notebook has changed: so must the test"
    return notebook


def execute(folder, changes, until_trained=False):
    """Execute the notebook of the copy, whole or up to the end of the training."""
    notebook = change(folder, changes)
    if until_trained:
        end = next(place for place, cell in enumerate(notebook.cells) if "executable} scripts/train.py" in cell.source)
        notebook.cells = notebook.cells[: end + 1]
    NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_the_notebook_runs_from_top_to_bottom_twice_and_becomes_a_page(copy):
    notebook = execute(copy, SMALL)
    text = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "score card at the photos' own size" in text and "to mend:  0" in text
    pictures = [
        o
        for cell in notebook.cells
        if cell.cell_type == "code"
        for o in cell.outputs
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 5
    assert (copy / "predictions/worst.png").exists() and (copy / "checkpoints/best.pt").exists()

    nbformat.write(change(copy, SMALL), copy / "small.ipynb")
    command = next(
        line for line in (copy / "Makefile").read_text().splitlines() if "nbconvert" in line
    )  # of `make demo`
    command = command.replace("$(BIN)", str(Path(sys.executable).parent)).replace("CarvanaUNET.ipynb", "small.ipynb")
    subprocess.run(shlex.split(command), cwd=copy, check=True, timeout=280)
    page = (copy / "predictions/small.html").read_text()
    assert "score card at the photos" in page and page.count("data:image/png") >= 5
    assert "epoch 1/2:" not in page  # a progress bar that was overwritten leaves nothing behind

    # Its training, which ended, gets one more epoch.
    goes_on = SMALL | {"RESUME = False": "RESUME = True", "else (16, 12)": "else (4, 3)"}
    notebook = execute(copy, goes_on, until_trained=True)
    assert "going on from epoch 3, batch 1" in "".join(output.get("text", "") for output in notebook.cells[-1].outputs)


@pytest.mark.filterwarnings("default")
def test_a_training_on_own_photos_that_fails_stops_the_notebook(copy, tiny_set):
    shutil.copytree(tiny_set, copy / "data/own")
    with pytest.raises(CellExecutionError, match="training failed: see the message above"):
        execute(copy, SMALL | {'DATA = "built-in"': 'DATA = "own"', "{WIDTH} --image-height": "95 --image-height"})
