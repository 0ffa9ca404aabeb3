"""The competition's photos and masks, through Kaggle."""

import shutil
import zipfile
from pathlib import Path

from carvana.files import PROJECT_DIR
from carvana.listing import list_files
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES

COMPETITION = "carvana-image-masking-challenge"
N_COMPETITION_PAIRS = 5088
KAGGLE_INPUT = Path("/kaggle/input")  # what a notebook on Kaggle has added as input


def find_input(archive: str) -> Path | None:
    """Find one of the competition's archives, or the folder of its files, among the inputs of a notebook on Kaggle."""
    names = (archive, archive.removesuffix(".zip"))
    return next((path for name in names for path in sorted(KAGGLE_INPUT.glob(f"**/{COMPETITION}/**/{name}"))), None)


def download(output: Path = PROJECT_DIR / "data") -> int:
    """Bring the competition's training photos and masks (only these, 430 MB) through Kaggle; go on where it stopped.

    In a notebook on Kaggle that has the competition as an input they come from there.

    Args:
        output: Folder that gets train/ and train_masks/.
    """
    try:
        import kagglehub
    except ModuleNotFoundError:
        raise RuntimeError("kagglehub must be installed to download. Run `pip install kagglehub`.") from None

    rules = f"https://www.kaggle.com/c/{COMPETITION}/rules"
    for archive in ("train.zip", "train_masks.zip"):
        folder = Path(output) / archive.removesuffix(".zip")
        if folder.is_dir() and len(list(folder.iterdir())) >= N_COMPETITION_PAIRS:
            continue
        try:
            archive_path = find_input(archive) or Path(kagglehub.competition_download(COMPETITION, path=archive))
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status == 403 or "403" in str(error):
                raise RuntimeError(
                    f"Kaggle wants the competition's rules accepted first: open {rules}, click, try again."
                ) from error
            if status == 401 or "401" in str(error) or "credential" in str(error).lower():
                raise RuntimeError(
                    "Kaggle does not know you: make a token at https://www.kaggle.com/settings, put it into the "
                    "environment variable KAGGLE_API_TOKEN (or a kaggle.json into ~/.kaggle), and try again."
                ) from error
            raise RuntimeError(
                f"{archive} could not be downloaded ({error}). Try again: it goes on where it stopped."
            ) from error
        extract(archive_path, Path(output))
    for name, suffixes in (("train", IMAGE_SUFFIXES), ("train_masks", MASK_SUFFIXES)):
        count = len(list_files(Path(output) / name, suffixes))
        if count != N_COMPETITION_PAIRS:
            raise RuntimeError(
                f"{Path(output) / name} must hold {N_COMPETITION_PAIRS} files, got {count}. Delete the folder and try "
                "again."
            )
        print(f"{Path(output) / name}: {count} files")
    return 0


def extract(archive_path: Path, output: Path) -> None:
    """Unpack an archive aside, then move its files, whole, into a folder of its name in `output`.

    Raises:
        RuntimeError: If the archive is damaged.
    """
    aside = output / f"{archive_path.stem}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if archive_path.is_dir():  # kagglehub has unpacked it itself
            shutil.copytree(archive_path, aside)
        else:
            with zipfile.ZipFile(archive_path) as archive:
                archive.extractall(aside)
        folder = aside / archive_path.stem
        target = output / archive_path.stem
        target.mkdir(parents=True, exist_ok=True)
        for path in (folder if folder.is_dir() else aside).iterdir():  # some archives hold only the files
            path.replace(target / path.name)
    except zipfile.BadZipFile as error:
        raise RuntimeError(f"{archive_path} is damaged ({error}). Delete it and try again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
