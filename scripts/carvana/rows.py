"""A CSV file of results that grows by whole rows and goes on after a kill."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import filelock

from carvana.files import write_file


def start_table(
    path: Path, header: list[str], made_with: dict, keep: Callable[[str], bool], overwrite: bool
) -> set[str]:
    """Make a CSV file ready to grow: drop rows that are to be made anew, and a last row that was cut.

    A JSON file of the same name beside it holds the settings that all rows were made with.

    Args:
        path: The .csv file; its first column tells rows apart, and no cell holds a line break.
        made_with: Settings that all rows must share; None goes with any value.
        keep: Tells from a row's first cell whether the row stays.
        overwrite: Allow other settings than those of the rows that are there; none of these then stays.

    Returns:
        First cells of the rows that stay.

    Raises:
        ValueError: If the rows that are there were made with other settings, or the file is no such table.
    """
    settings_path, first_line, partial = path.with_suffix(".json"), to_line(header), path.with_name(path.name + ".tmp")
    settings, before = {key: value for key, value in made_with.items() if value is not None}, {}
    if settings_path.exists():
        try:
            before = dict(json.loads(settings_path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{settings_path} is damaged. Delete it with {path}, or name another place.") from error
        if not before.keys() <= made_with.keys():
            raise ValueError(f"{settings_path} must hold the settings of {path}, got other things. Name another place.")
    others = [key for key in settings if path.exists() and before.get(key) not in (None, settings[key])]
    if others and not overwrite:
        raise ValueError(
            f"{others[0]} must be {before[others[0]]}, as for the results in {path}, got {settings[others[0]]}. Use "
            "--overwrite to make them anew, or name another place for the results."
        )
    names = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        with open(path, "ab+") as rows:  # read line by line: a submission has 100,064 rows of some 20 kB
            rows.seek(0)
            got = rows.readline(5000)
            if not first_line.startswith(got):  # it may have been cut, too
                got = got.decode("utf-8", "replace").strip()[:80]
                raise ValueError(f"{path} must begin with {','.join(header)}, got {got!r}. Name another file.")
            with open(partial, "wb") as kept:
                kept.write(first_line)
                for line in rows:
                    name = (next(csv.reader([line[:5000].decode("utf-8", "replace")]), []) or [""])[0]
                    if not others and line.endswith(b"\n") and name and name not in names and keep(name):
                        names.add(name)
                        kept.write(line)
        os.replace(partial, path)
    write_file(settings_path, json.dumps(settings if others else before | settings, indent=1).encode())
    return names


def append_row(path: Path, row: list) -> None:
    """Add a whole row; raise an OSError if the file cannot be written."""
    try:
        with lock(path), open(path, "ab", buffering=0) as file:
            file.write(to_line(row))
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror}). Free some space.") from error


def lock(path: Path) -> filelock.FileLock:
    """Keep other processes of one torchrun from the file."""
    return filelock.FileLock(path.with_name(f".{path.name}.lock"))


def to_line(row: list) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode()
