"""The project's folder, files that are whole or not there, a lock on a folder, and one way for commands to fail."""

import contextlib
import csv
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
from PIL import Image

PROJECT_DIR = Path(__file__).resolve().parents[2]


def shorten(path: Path | str) -> str:
    """Show a path relative to the project, where it lies in it."""
    path = Path(path)
    return path.relative_to(PROJECT_DIR).as_posix() if path.is_relative_to(PROJECT_DIR) else str(path)


def write_file(path: Path | str, content: bytes) -> None:
    """Write a file under a temporary name, then rename it: its name always stands for whole content.

    Raises:
        OSError: If it cannot be written; the file that was there is still whole.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):  # the renaming, too, outlives a power cut
            folder = os.open(path.parent, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder is gone or read-only: the first error says so
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); what was saved before is whole. Free some "
            "space, or name another folder."
        ) from error


def write_table(path: Path | str, rows: list[dict]) -> None:
    """Write rows as a CSV file, whole or not at all; the first row's keys are the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def set_aside(folder: Path) -> Path:
    """Rename a folder to <folder>-1, or the next number that is free; return where it is now."""
    places = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    return folder.rename(next(place for place in places if not place.exists()))


def copy_files(source: Path, target: Path | None, skip: str = "") -> None:
    """Copy what is new in a folder to another one, if there is one; if that fails, as a mounted Drive may, warn."""
    if target is None:
        return
    try:
        for path in sorted(source.iterdir()):
            copy = target / path.name
            is_copied = copy.exists() and copy.stat().st_mtime > path.stat().st_mtime
            if path.is_file() and path.suffix != ".tmp" and path.name != skip and not is_copied:
                write_file(copy, path.read_bytes())
    except OSError as error:
        print(f"warning: {source} could not be copied to {target}: {error}", file=sys.stderr)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep a second training out of a folder while this one lives; the lock dies with its processes.

    Raises:
        RuntimeError: If another training has the folder.
        OSError: If the folder cannot be written to.
    """
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))  # beside the folder, which may be renamed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        acquired = lock.acquire(timeout=1)  # a killed run takes a moment to end
    except filelock.Timeout as error:
        raise RuntimeError(
            f"{folder} is in use by another training. Wait for it, or name another --checkpoint-dir."
        ) from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}). Name another --checkpoint-dir.") from error
    with acquired:
        yield


def print_values(values: dict) -> None:
    """Print a command's result, for eyes and grep, a name and its value a line."""
    if values:
        print("---")
    for name, value in values.items():
        text = f"{value:.6g}" if isinstance(value, float) else shorten(value) if isinstance(value, Path) else value
        print(f"{name + ':':<20}{text}")


def run_command(main: Callable, args: list[str] | None = None) -> None:
    """Run a command and exit: a user's mistake prints one line on stderr and exits with 1; --debug shows the traceback.

    `main` takes the arguments, those of the process if `args` is None, and returns the exit code, None for 0.
    """
    args = list(sys.argv[1:] if args is None else args)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice that many pixels are an error
    try:
        sys.exit(main([arg for arg in args if arg != "--debug"]) or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if "--debug" in args:
            raise
        # One line, whatever a file's name or a library's message holds.
        print(f"error: {' '.join(str(error).split()) or 'memory ran out'}", file=sys.stderr)
        sys.exit(1)
