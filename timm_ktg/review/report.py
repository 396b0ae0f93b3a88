"""The command `report`: a search, or runs, as one HTML page that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import RecipeError, located
from ..recipe.recipe import SEARCH
from ..records.files import write_whole
from ..records.run_directory import RunDirectory
from ..search.journal import JOURNAL
from .run_data import read_run
from .study_data import read_study

MARK = '<meta name="generator" content="timm_ktg.review">'


def write_report(
    paths: Sequence[Path],
    output: Path | None = None,
    storage: str | None = None,
    name: str | None = None,
) -> Path:
    """Write the page of a search, or of runs, and return where it is.

    Args:
        paths: The directory of one search, or those of runs.
        output: The page; None: report.html in the first directory.
        storage: Where the study is kept; None: where the search's recipe says.
        name: Name of the study; None: the only one that is kept there.

    Raises:
        RecipeError: What was asked for is wrong.
    """
    if find_spec("jinja2") is None:
        extra = "It comes with: pip install 'timm_ktg[review]'."
        raise RecipeError([f"report: jinja2 is missing. {extra}"])
    studies = _check_paths(paths)
    first = paths[0].parent if paths[0].is_file() else paths[0]
    output = output or RunDirectory(first).report
    _check_output(output)
    if studies:
        from .study_page import study_page

        page = study_page(read_study(paths[0], storage, name))
    else:
        from .run_page import runs_page

        page = runs_page([read_run(path) for path in paths])
    text = _render("study.html" if studies else "runs.html", page)
    with located(f"report: {output} cannot be written"):
        write_whole(output, text)
    return output


def _check_paths(paths: Sequence[Path]) -> bool:
    """Return whether the only path is a search's; otherwise all are runs'.

    Raises:
        RecipeError: A path is neither, or there are several searches.
    """
    problems = [f"{path}: there is no such directory." for path in paths if not path.exists()]
    studies = [path for path in paths if _is_study(path)]
    if not problems and studies and len(paths) > 1:
        problems = [f"report: should be one search, or runs. Found {len(paths)} directories."]
    if problems:
        raise RecipeError(problems)
    return bool(studies)


def _is_study(path: Path) -> bool:
    if path.is_file():
        return path.name == SEARCH
    return (path / SEARCH).is_file() or (path / JOURNAL).is_file()


def _check_output(output: Path) -> None:
    """Raise RecipeError if the page would replace something that is not a page of ours."""
    if output.is_dir():
        raise RecipeError([f"report: {output} is a directory; --output should be a file."])
    if not output.exists():
        return
    with located(f"report: {output} cannot be read"), output.open("rb") as file:
        ours = MARK.encode() in file.read(1000)  # bytes, where a page has the mark
    if not ours:
        raise RecipeError([f"report: {output} is there and is no report; choose another file."])


def _render(template: str, page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("timm_ktg.review", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**page, mark=MARK)
