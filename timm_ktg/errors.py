"""Errors that users cause, and how to report them."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

SECRET = frozenset({"storage", "password"})  # keys whose values no message shows

# Where a text may hold a password: the URL of anything but a web page or a bucket,
# somebody:password@host, password=... . Databases are also known by their names alone, because a
# URL may lack its slashes.
_OPEN = r"https?:|s3:|file:|hf:"
_DATABASES = r"(?:postgres|mysql|mariadb|mssql|oracle|redis|mongodb|cockroach)[\w+.-]*:/*"
_WORD = r"[^\s'\"`]"
_PASSWORDS = (
    # A password may hold a space, where it should hold %20.
    (
        re.compile(
            rf"\b({_DATABASES}|(?!{_OPEN})[a-z][\w+.-]+:/+)(?!/|\.\.\.){_WORD}+(\s{_WORD}*@{_WORD}*)?"
        ),
        r"\1***",
    ),
    (re.compile(r"[^\s/'\"`:@=]+:[^\s'\"`]+@(?=[^\s@]*)"), "***@"),
    (re.compile(rf"\b(password|passwd|pwd)(\s*=\s*){_WORD}+"), r"\1\2***"),
)

_TOO_LONG = re.compile(r"(\S{200})\S{200,}")  # such as a path that no system takes


def masked(text: str) -> str:
    """Return a text without what looks like the credentials of a database."""
    for pattern, without in _PASSWORDS:
        text = pattern.sub(without, text)
    return text


class _Found(reprlib.Repr):
    """Short forms of values of a user's; `reprlib` calls these methods by the value's type."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 3, 100, 100, 100

    def repr_str(self, value: str, level: int) -> str:
        return super().repr_str(masked(value), level)

    def repr_int(self, value: int, level: int) -> str:
        digits = int(value.bit_length() * 0.30103)  # Python refuses to write very long ones
        return f"a number of some {digits} digits" if digits > 100 else repr(value)

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        known = {key: "***" if key in SECRET else each for key, each in value.items()}
        return super().repr_dict(known, level)


found = _Found().repr  # how every message shows a value: short, and without a password


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Suggest the valid name nearest to a wrong one.

    Args:
        name: What the user wrote.
        choices: The names that exist.

    Returns:
        " Did you mean `x`?", with its leading space, or "" when nothing is near.
    """
    nearest = get_close_matches(name, list(choices), n=1)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


class RecipeError(ValueError):
    """A recipe, or the command line over it, is wrong.

    Args:
        problems: All problems, a line each, in the form `section.field: what`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(_TOO_LONG.sub(r"\1...", masked(problem)) for problem in problems)
        super().__init__("\n".join(self.problems))


class StorageError(OSError):
    """A file cannot be written: the disk is full, permission is missing, or the folder is gone."""


class DataError(RuntimeError):
    """A run cannot go on, because an image cannot be read."""


class ContractError(ValueError):
    """A gate or a loss broke its contract."""


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Collect the problems of a RecipeError raised in the block, and go on after the block.

    Args:
        problems: The list they are added to.
    """
    try:
        yield
    except RecipeError as error:
        problems += error.problems


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, with its type in front unless it is a ValueError.

    Args:
        error: The error.
    """
    said = " ".join(str(error).split())
    kind = type(error).__name__
    if not said:
        return kind
    return said if isinstance(error, ValueError) else f"{kind}: {said}"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Turn any other error raised in the block into a one-line RecipeError at a place in a recipe.

    Args:
        where: The place, such as `train.opt_kwargs`.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # other libraries raise all kinds of errors
        raise RecipeError([f"{where}: {one_line(error)}"]) from error


# What Python raises at a user's values that nothing has refused by name: a path that is too long, a
# text that is not UTF-8, a number or a nesting beyond all bounds.
_INPUT = (ValueError, OSError, OverflowError, RecursionError, MemoryError)


@contextmanager
def said(where: str) -> Iterator[None]:
    """Make a RecipeError of one line of what a user's input raised inside; programs begin with it.

    A ContractError says its own place. Errors of other kinds are those of the code.

    Args:
        where: What was read.
    """
    try:
        yield
    except (RecipeError, ContractError):
        raise
    except _INPUT as error:
        raise RecipeError([f"{where}: {one_line(error)}"]) from error


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message.

    Args:
        error: The error that the library raised.

    Returns:
        The line, or the error's type if the message is empty.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
