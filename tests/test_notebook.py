"""The notebook: thin, without outputs, executed as people do: on the built-in set, on their own photos, and twice."""

import re
import shlex
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import PROJECT_DIR
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

NOTEBOOK = PROJECT_DIR / "CarvanaUNET.ipynb"
# The same notebook, small: fewer cars, a narrower network, fewer epochs.
SMALL = {
    "--cars 16 --size 480x320": "--cars 3 --size 96x64",
    '"base_width": 16, "image_width": 240, "image_height": 160, "epochs": 12': (
        '"base_width": 4, "image_width": 96, "image_height": 64, "epochs": 2'
    ),
    '"base_width": 8, "image_width": 96, "image_height": 64, "epochs": 4': '"base_width": 4, "epochs": 1',
}
OWN = {'DATA = "built-in"': 'DATA = "own"'}


def cells(kind):
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == kind]


def test_cells_are_short_hold_no_functions_and_carry_no_outputs():
    for cell in cells("code"):
        assert len([line for line in cell.source.splitlines() if line.strip()]) <= 12, cell.source
        assert max(map(len, cell.source.splitlines())) <= 120
        assert "def " not in cell.source and "class " not in cell.source
        assert cell.outputs == [] and cell.execution_count is None


def test_each_code_cell_is_introduced_in_words():
    kinds = [cell.cell_type for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    assert all(before == "markdown" for before, kind in zip(kinds, kinds[1:]) if kind == "code")


@pytest.fixture
def copy(tmp_path):
    """The project as a fresh clone has it."""
    folder = tmp_path / "CarvanaUNET"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (PROJECT_DIR / name).is_file() and not name.startswith((".", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_DIR / name, folder / name)
    return folder


def change(changes):
    """Read the notebook with other settings."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in changes.items():
        assert any(old in cell.source for cell in notebook.cells), f"the notebook has no {old}: has the test to follow?"
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    return notebook


TRAINING = ("REPOSITORY =", "SETTINGS =", "folder =", "prepare_data", "scripts/train.py {options}")


def execute(folder, changes, cells=None):
    """Execute the notebook in a folder, whole or its cells that hold one of some words; return what it printed."""
    notebook = change(changes)
    if cells:
        notebook.cells = [cell for cell in notebook.cells if any(words in cell.source for words in cells)]
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def draw_photos(folder, mask_folder=None, n=3):
    """Draw dark ellipses on noise, of three shapes, as a person's own few photos."""
    rng = np.random.default_rng(0)
    for number in range(n):
        height, width = 80 + 40 * number, 120
        y, x = np.mgrid[:height, :width]
        mask = ((x / width - 0.5) / 0.3) ** 2 + ((y / height - 0.6) / 0.25) ** 2 < 1
        photo = rng.integers(180, 220, (height, width, 3), np.uint8)
        photo[mask] = rng.integers(20, 90, 3)
        for place, array in ((folder, photo), (mask_folder, mask)):
            if place:
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(place / f"car{number}.png")


@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_make_demo_executes_the_notebook_into_a_page_and_a_training_resumes(copy):
    draw_photos(copy / "my photos", n=2)
    nbformat.write(change(SMALL | {'PHOTO = ""': 'PHOTO = "my photos"'}), copy / "small.ipynb")
    line = next(line for line in (copy / "Makefile").read_text().splitlines() if "nbconvert" in line)
    command = line.replace("$(BIN)", str(sys.prefix + "/bin")).replace("CarvanaUNET.ipynb", "small.ipynb")
    subprocess.run(shlex.split(command), cwd=copy, check=True, timeout=900)
    page = (copy / "predictions/small.html").read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "of 1 car" in text and "too few cars for an interval" in text
    assert {"car0_overlay", "car1_overlay"} <= {path.stem for path in (copy / "predictions/own").iterdir()}
    assert page.count("data:image/png") >= 10 and page.count("jp-RenderedSVG jp-OutputArea-output") == 2
    assert "epoch 1/2:" not in text  # a progress bar that was overwritten leaves nothing behind
    # Only what the notebook says is passed on: train.py marks with a star what is not its default.
    settings = text.split("settings (* is not")[1].split("score card")[0]
    passed = set(re.findall(r"^\* (\w+)", settings, re.M))
    named = "base_width image_width image_height epochs validation_share train_image_dir train_mask_dir"
    assert passed == set(named.split())

    more = SMALL | {"RESUME = False": "RESUME = True"}
    more = {old: new.replace('"epochs": 2', '"epochs": 3') for old, new in more.items()}
    assert "resuming" in execute(copy, more, TRAINING)


@pytest.mark.filterwarnings("default")
def test_a_training_that_fails_stops_the_notebook_and_three_photos_of_ones_own_reach_its_end(copy):
    draw_photos(copy / "data/own/train", copy / "data/own/train_masks")
    with pytest.raises(CellExecutionError, match="training failed: see the message above"):
        execute(copy, SMALL | OWN | {"RESUME = False": "RESUME = True"}, TRAINING)  # there is nothing to resume
    text = execute(copy, SMALL | OWN)
    assert "full resolution: 1 photo of 1 group" in text and "1 photo predicted" in text and "1 photos" not in text


@pytest.mark.filterwarnings("default")
def test_without_the_project_beside_it_the_notebook_asks_for_its_address_or_clones_it(tmp_path):
    with pytest.raises(CellExecutionError, match="set REPOSITORY to the address of your copy"):
        execute(tmp_path, {}, ["REPOSITORY ="])
    address = {"https://github.com/your-name/CarvanaUNET.git": PROJECT_DIR.as_uri()}
    execute(tmp_path, address | {"-m pip install": "-c pass"}, ["REPOSITORY ="])
    assert (tmp_path / "CarvanaUNET/scripts/train.py").exists()
