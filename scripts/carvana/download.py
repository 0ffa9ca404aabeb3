"""The competition's photos and masks, through Kaggle."""

import shutil
import zipfile
from pathlib import Path

from carvana.files import PROJECT_DIR
from carvana.listing import list_files
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES
from carvana.settings import PathSetting

COMPETITION = "carvana-image-masking-challenge"
N_COMPETITION_PAIRS = 5088
KAGGLE_INPUT = Path("/kaggle/input")  # what a notebook on Kaggle has added as input


def download(output: PathSetting = PROJECT_DIR / "data") -> int:
    """Bring the competition's training photos and masks (only these, 430 MB) through Kaggle; go on where it stopped.

    In a notebook on Kaggle that has the competition as an input they come from there.

    Args:
        output: Folder that gets train/ and train_masks/.
    """
    for name, suffixes in (("train", IMAGE_SUFFIXES), ("train_masks", MASK_SUFFIXES)):
        folder = Path(output) / name
        folder.mkdir(parents=True, exist_ok=True)
        if len(list_files(folder, suffixes)) < N_COMPETITION_PAIRS:
            extract(fetch(f"{name}.zip"), folder)
        n_files = len(list_files(folder, suffixes))
        if n_files < N_COMPETITION_PAIRS:
            raise RuntimeError(
                f"{folder} must hold {N_COMPETITION_PAIRS} files, got {n_files}. Delete it and try again."
            )
        print(f"{folder}: {n_files} files")
    return 0


def fetch(archive: str) -> Path:
    """Find one of the competition's archives, or the folder of its files, among a notebook's inputs, or download it."""
    for name in (archive, archive.removesuffix(".zip")):
        for path in sorted(KAGGLE_INPUT.glob(f"**/{COMPETITION}/**/{name}")):
            return path
    try:
        import kagglehub

        return Path(kagglehub.competition_download(COMPETITION, path=archive))
    except Exception as error:  # of kagglehub, requests or the disk
        raise RuntimeError(
            f"{archive} could not be downloaded ({error}). Install kagglehub, accept the competition's rules at "
            f"https://www.kaggle.com/c/{COMPETITION}/rules, make a token at https://www.kaggle.com/settings and put it "
            "into the environment variable KAGGLE_API_TOKEN. Then try again: it goes on where it stopped."
        ) from error


def extract(archive_path: Path, folder: Path) -> None:
    """Unpack an archive aside, then move its files, whole, into a folder of its name.

    Raises:
        RuntimeError: If the archive is damaged.
    """
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if archive_path.is_dir():  # kagglehub has unpacked it itself
            shutil.copytree(archive_path, aside)
        else:
            with zipfile.ZipFile(archive_path) as archive:
                archive.extractall(aside)
        inner = aside / folder.name  # some archives hold only the files
        for path in (inner if inner.is_dir() else aside).iterdir():
            path.replace(folder / path.name)
    except zipfile.BadZipFile as error:
        raise RuntimeError(f"{archive_path} is damaged ({error}). Delete it and try again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
