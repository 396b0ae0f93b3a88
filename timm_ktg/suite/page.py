"""The page of a suite: what its table says, as Markdown, and nothing that it does not say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..recipe.suite_config import SuiteConfig
from ..records.files import write_whole
from .compare import Comparison, sample_of
from .forest import draw_forest
from .results import Results, results_of
from .table import read_table


def write_page(suite: SuiteConfig, table: Path, source: str) -> Path:
    """Write the page beside the table, with a picture for every data set that compares methods.

    Args:
        suite: The suite.
        table: The CSV.
        source: File of the suite, for a link.

    Returns:
        The page.

    Raises:
        RecipeError: The table cannot be read.
        StorageError: The page cannot be written.
    """
    rows = read_table(table)
    lines = [f"# {table.stem.capitalize()}", ""]
    lines += [suite.description.strip(), ""] if suite.description else []
    lines += [
        f"This page is made from [{table.name}]({table.name}) by `python -m timm_ktg.suite "
        f"{source} --table {table.name} --page`. Every row there is a run; `logs/` holds its "
        "recipe and its metrics.",
        "",
    ]
    shown = [name for name, each in suite.datasets.items() if each.shown]
    every = [results_of(suite, dataset, rows) for dataset in shown]
    for results in every:
        picture = table.with_name(f"{table.stem}-{results.dataset}.svg")
        if results.comparisons[suite.bases[0]]:
            draw_forest(picture, results)
        else:
            picture.unlink(missing_ok=True)
        lines += [*_section(results, picture), ""]
    lines += _transfer(suite, every)
    gone = sorted({row.dataset for row in rows} - suite.datasets.keys())
    if gone:
        lines += [
            f"**Left out**: rows of data sets that the suite no longer has: {', '.join(gone)}."
        ]
    page = table.with_suffix(".md")
    write_whole(page, "\n".join(lines).rstrip() + "\n")
    return page


def _section(results: Results, picture: Path) -> Iterator[str]:
    yield f"## {results.title}"
    yield ""
    if not results.runs:
        yield "Not yet: the table has no run of it."
        return
    for base in results.suite.bases:
        if results.comparisons[base]:
            yield from _verdict(results, base)
            yield ""
    if results.comparisons[results.suite.bases[0]]:
        yield f"![Differences to {results.name_of(results.suite.bases[0])}]({picture.name})"
        yield ""
    yield from _table(results)
    yield from _notes(results)


def _transfer(suite: SuiteConfig, every: Sequence[Results]) -> Iterator[str]:
    """Yield how graphs that were found on one data set do on the others."""
    found = {name: each for name, each in suite.methods.items() if each.found_on}
    there = [each for each in every if found.keys() & each.suite.methods_of(each.dataset)]
    if not there:
        return
    base = suite.bases[0]
    yield "## Transfer"
    yield ""
    yield (
        "How graphs do on the data set where they were found (*italic*), and on others: test top-1 "
        f"over {there[0].name_of(base)}, with Welch's interval; bold as above."
    )
    yield ""
    yield f"| graph | {' | '.join(_cell(each.title) for each in there)} |"
    yield "|---" * (1 + len(there)) + "|"
    for name, method in found.items():
        cells = [_transferred(each, base, name, each.dataset == method.found_on) for each in there]
        yield f"| {' | '.join([_cell(method.title or name), *cells])} |"
    yield ""


def _cell(text: str) -> str:
    """Return a text for a table, which a `|` would give another column."""
    return text.replace("|", r"\|")


def _transferred(results: Results, base: str, method: str, is_home: bool) -> str:
    if method not in results.suite.methods_of(results.dataset):
        return "-"
    compared = results.comparisons[base].get(method)
    if compared is None:
        return "not yet"
    said = f"{compared.welch} (n={len(results.figures[method])})"
    mark = "*" * is_home + "**" * compared.is_clear
    return f"{mark}{said}{mark}"


def _verdict(results: Results, base: str) -> Iterator[str]:
    """Yield which methods are clearly above and below one, and which are neither."""
    found, name = results.comparisons[base], results.name_of(base)
    judged = {method: each for method, each in found.items() if each.p is not None}
    if not judged:
        few = any(math.isnan(each.welch.low) for each in found.values())
        yield f"Too {'few seeds' if few else 'little spread'} to say what differs from {name}."
        return
    clear = {method: each.welch.gap for method, each in judged.items() if each.is_clear}
    counted = f"({len(judged)} method{'s' * (len(judged) > 1)} compared, Holm, 5 %)"
    if not clear:
        yield f"**No method differs clearly from {name}** {counted}."
        return
    yield f"Beside {name} {counted}:"
    yield ""
    for word, methods in (
        ("**Clearly above**", [each for each, gap in clear.items() if gap > 0]),
        ("**Clearly below**", [each for each, gap in clear.items() if gap < 0]),
        ("Not told apart", [each for each in judged if each not in clear]),
    ):
        if methods:
            yield f"- {word}: {'; '.join(map(results.name_of, methods))}."


def _table(results: Results) -> Iterator[str]:
    bases = results.suite.bases
    names = [_cell(results.name_of(base)) for base in bases]
    over = [column for name in names for column in (f"over {name}", "paired", "p")]
    yield f"| method | test top-1 % | validation | {' | '.join(over)} | training cost |"
    yield "|---" * (4 + len(over)) + "|"
    for method, figures in results.figures.items():
        name, figure = _cell(results.name_of(method)), str(sample_of(figures))
        cells = [name, figure, _validation(results, method)]
        for base in bases:
            cells += _compared(results.comparisons[base].get(method))
        yield f"| {' | '.join([*cells, _cost(results, method)])} |"
    for method, figures in results.teachers.items():
        blank = ["-"] * len(over)
        name = f"teacher: {_cell(results.name_of(method))}"
        cells = [name, str(sample_of(figures)), _validation(results, method), *blank]
        yield f"| {' | '.join([*cells, _cost(results, method)])} |"
    yield ""


def _compared(found: Comparison | None) -> list[str]:
    if found is None:
        return ["-", "-", "-"]
    paired = "-" if math.isnan(found.paired.gap) else str(found.paired)
    p = "-" if found.p is None else f"{found.p:.3f}" if found.p >= 0.0005 else "<0.001"
    return [f"**{found.welch}**" if found.is_clear else str(found.welch), paired, p]


def _validation(results: Results, method: str) -> str:
    values = [run.val_top1 for run in results.runs[method].values() if run.val_top1 is not None]
    return f"{math.fsum(values) / len(values):.2f}" if values else "-"


def _cost(results: Results, method: str) -> str:
    cost = results.cost(method)
    if cost is None:
        return "not yet"
    own, teachers = cost
    return f"{own:.2f}" + (f" + {teachers:.2f}" if teachers else "")


def _notes(results: Results) -> Iterator[str]:
    runs = [run for each in results.runs.values() for run in each.values()]
    base = results.name_of(results.suite.bases[0])
    seeds = ", ".join(map(str, results.suite.datasets[results.dataset].seeds))
    figures = results.figures.get(results.suite.bases[0])
    yield f"- Planned seeds: {seeds}. Mean ± standard deviation of test top-1 over them."
    yield (
        "- [95 %]: Welch's interval of the difference. Paired: Student's, seed by seed, where the "
        "student starts from the same weights and sees the images in the same order. p: Welch's, "
        "corrected for the number of methods (Holm); bold below 0.05. The intervals "
        "are not corrected."
    )
    giver = results.suite.datasets[results.dataset].weights_from
    taught = "plus those that trained the teachers" if giver is None else "without the teachers'"
    from_there = "" if giver is None else f" The teachers are those of {giver}."
    yield (
        f"- Training cost: FLOPs in trainings of {base}, {taught}.{from_there} "
        "A teacher's own forward passes are left out where its logits come from a table."
    )
    images = runs[0].test_images
    if figures:
        error = math.sqrt(2) * sample_of(figures).error_of_test_set(images)
        yield (
            f"- {images:,} test images alone leave a standard error of {error:.2f} points in a "
            "difference, as if two methods were wrong on unrelated images; seeds do not lower it."
        )
    for name, values in (
        ("Commits", {run.commit for run in runs}),
        ("Devices", {run.device for run in runs}),
        ("torch", {run.torch for run in runs}),
        ("timm", {run.timm for run in runs}),
    ):
        yield f"- {name}: {', '.join(sorted(values))}."
    methods = results.suite.methods_of(results.dataset)
    for absent in (base for base in results.suite.bases if base not in methods):
        yield (
            f"- Nothing is compared with {results.name_of(absent)}, because it is not among the "
            "methods of this data set."
        )
    if results.missing:
        yield f"- **Missing**: {'; '.join(results.missing)}."
    if results.stale:
        names = sorted({f"{run.method} seed {run.seed} ({run.recipe})" for run in results.stale})
        yield f"- Left out, because the recipe or the plan has changed since: {', '.join(names)}."
