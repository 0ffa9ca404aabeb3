"""Settings: a dataclass whose types are checked, the command line that is made from it, and how it is printed."""

import dataclasses
import difflib
import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import pydantic
import tyro

from carvana.files import shorten

# Types of numbers that say their range.
Count = Annotated[int, pydantic.Field(ge=1, le=10**9)]
Whole = Annotated[int, pydantic.Field(ge=0, le=2**31)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
# The type of a setting that is a file or folder: a string will do, and --help shows it relative to the project.
PathSetting = Annotated[
    Path, pydantic.Strict(False), tyro.conf.arg(help_behavior_hint=lambda default: f"(default: {shorten(default)})")
]


def settings_class(cls: type) -> type:
    """Make a frozen dataclass that refuses, defaults included, what does not fit a field's type: one line an error.

    Raises:
        ValueError: From the class that is made, instead of pydantic's own error.
    """
    config = pydantic.ConfigDict(strict=True, validate_default=True, extra="forbid")
    cls = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    checked_init = cls.__init__

    @functools.wraps(checked_init)
    def __init__(self, *args, **values):
        try:
            checked_init(self, *args, **values)
        except pydantic.ValidationError as error:
            raise ValueError("\n".join(map(explain, error.errors()))) from None

    cls.__init__ = __init__
    return cls


def explain(error: dict) -> str:
    """Turn one of pydantic's errors into a sentence."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # from __post_init__, in our own words
        return str(error["ctx"]["error"])
    if error["type"] == "unexpected_keyword_argument":
        return f"{name} is not a setting."
    rule = error["msg"].removeprefix("Input should be ") if "should be" in error["msg"] else "a path"
    return f"{name} must be {rule}, got {error['input']!r}."


def parse_settings(cls: type, args: list[str], description: str | None):
    """Make settings from the command line; each field is an option, its comment the help.

    Raises:
        SystemExit: With 2 after an unknown option or a wrong value, with 0 after --help.
    """
    options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(cls)]
    initials = {"--" + "".join(part[0] for part in option[2:].split("-")): option for option in options}
    for word in (arg.split("=")[0].replace("_", "-") for arg in args if arg.startswith("--")):
        if word not in ("--help", "--", *options) and f"--{word.removeprefix('--no-')}" not in options:
            likely = [initials[word]] if word in initials else [name for name in options if name.startswith(word)]
            likely += difflib.get_close_matches(word, options)
            advice = f"Did you mean {likely[0]}?" if likely else "See --help."
            print(f"error: {word} is not an option. {advice}", file=sys.stderr)
            raise SystemExit(2)
    return tyro.cli(cls, args=args, description=description, prog=f"python {shorten(Path(sys.argv[0]).resolve())}")


def to_arguments(changes: dict) -> list[str]:
    """Write settings as the arguments of the command line.

    Example:
        >>> to_arguments({"epochs": 3, "augment": False, "load_model": True, "car_value": ("1", "2")})
        ['--epochs', '3', '--no-augment', '--load-model', '--car-value', '1', '2']
    """
    words = []
    for name, value in changes.items():
        values = [] if isinstance(value, bool) else value if isinstance(value, tuple) else [value]
        words += [f"--{'no-' if value is False else ''}{name.replace('_', '-')}", *map(str, values)]
    return words


def plain_settings(settings) -> dict:
    """Return settings as plain values, as JSON will give them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def format_settings(settings) -> str:
    """List settings, those that are not the defaults marked."""
    lines = ["settings (* is not the default):"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        mark = " " if value == field.default else "*"
        lines.append(f"{mark} {field.name:<20}{shorten(value) if isinstance(value, Path) else value}")
    return "\n".join(lines)
