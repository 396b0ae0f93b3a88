"""What goes wrong through no fault of the code, and how it is said."""

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
        problems: Everything that is wrong, a line each, in the form `section.field: what`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ContractError(ValueError):
    """A gate or a loss returned something that its contract does not allow."""


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Keep the problems of a RecipeError that is raised inside, and go on after the block.

    Args:
        problems: Where they are kept, to be raised all at once.
    """
    try:
        yield
    except RecipeError as error:
        problems += error.problems


def one_line(error: BaseException) -> str:
    """Return what an error says as one line, behind its type where that is not plain ValueError.

    Args:
        error: What was raised.
    """
    said = " ".join(str(error).split())
    kind = type(error).__name__
    if not said:
        return kind
    return said if isinstance(error, ValueError) else f"{kind}: {said}"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Make a RecipeError of one line, at a place of the recipe, of whatever is raised inside.

    Args:
        where: The place, such as `train.opt_kwargs`.
    """
    try:
        yield
    except Exception as error:  # other libraries raise what they like
        raise RecipeError([f"{where}: {one_line(error)}"]) from error


def first_line(error: BaseException) -> str:
    """The first line of another library's message, for errors that cost one line.

    Args:
        error: What that library raised.

    Returns:
        The line, or the name of the error's type where it says nothing.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
