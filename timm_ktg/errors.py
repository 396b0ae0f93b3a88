"""Errors that users cause, and how to report them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches


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
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class StorageError(RuntimeError):
    """A file cannot be written: the disk is full, permission is missing, or the folder is gone."""


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
    """Turn any error raised in the block into a one-line RecipeError at a place in the recipe.

    Args:
        where: The place, such as `train.opt_kwargs`.
    """
    try:
        yield
    except Exception as error:  # other libraries raise all kinds of errors
        raise RecipeError([f"{where}: {one_line(error)}"]) from error


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message.

    Args:
        error: The error that the library raised.

    Returns:
        The line, or the error's type if the message is empty.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
