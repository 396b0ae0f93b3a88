"""The page of methods: `python -m tests.methods` writes recipes/METHODS.md.

Formulas and sources come from the docstrings, what was measured from the recipes' headers and from
the tables of recipes/evidence, and everything else from methods.yaml.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from timm_ktg import presets
from timm_ktg.graph import gates, losses
from timm_ktg.recipe.recipe import bundled_recipes
from timm_ktg.recipe.suite_config import load_suite
from timm_ktg.suite.compare import sample_of
from timm_ktg.suite.results import Results, results_of
from timm_ktg.suite.table import read_table

PAGE = Path(__file__).parents[1] / "recipes" / "METHODS.md"
EVIDENCE = PAGE.with_name("evidence")
NOTES: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
RUN = "accelerate launch -m timm_ktg.train"
OWN = "timm_ktg."

Function = Callable[..., Any]

PRESETS: dict[str, Function] = {
    name: function
    for name, function in vars(presets).items()
    if getattr(function, "__module__", "") == presets.__name__ and name[0].islower()
}

INTRO = f"""\
# Methods

What a graph can be made of: presets, the losses of its edges, and their gates. The
[README](../README.md) says how to register further losses and gates.

An edge from s to t adds weight * mean_n G(l)[n] to the loss of t, where l holds the losses of the
B samples and G is the gate. z are logits, p = softmax(z / T) are probabilities of C classes, y are
the labels, CE is the cross-entropy with the labels, and T is the temperature of the edge.

Published figures are top-1 accuracies in %. Protocols differ between sources, so compare gains, not
columns. "Measured" is what this code has reached, in %, too; where a page is linked, the settings
are that page's and not the command's. The commands train on scikit-learn's digits, where no preset
was seen to gain over the labels alone. The headers of the presets' recipes say which flags name
other models and images. A preset's graph serves any recipe:
`{RUN} my-recipe.yaml --graph presets/kd`.

`python -m tests.methods` writes this page from docstrings, recipes and `tests/methods.yaml`.
"""


def functions(registry: Any) -> dict[str, Function]:
    """Our own losses or gates by name, without those of other packages."""
    found = {name: registry.get(name) for name in registry.names()}
    return {name: each for name, each in found.items() if each.__module__.startswith(OWN)}


def sections() -> dict[str, dict[str, Function]]:
    """All methods by name, below the title of their section."""
    return {
        "Presets": PRESETS,
        "Losses": functions(losses.registry),
        "Gates": functions(gates.registry),
    }


def parts(function: Function) -> dict[str, str]:
    """The parts of a docstring by their title; the text before the first has an empty one."""
    pieces = re.split(r"^(\w+):$\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return dict(zip(["", *pieces[1::2]], pieces[::2], strict=True))


def paragraphs(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.split("\n\n") if each.strip()]


def options(function: Function) -> str:
    """The arguments that a user can give, with their defaults."""
    given = inspect.signature(function).parameters.values()
    named = [
        each for each in given if each.kind is each.KEYWORD_ONLY and each.default is not each.empty
    ]
    return ", ".join(f"`{each.name}={each.default}`" for each in named)


def measured(name: str) -> Iterator[str]:
    """What was measured: what the header of its recipe says, and what the evidence says."""
    if " " not in recipe_of(name):  # its recipe as it is, without flags
        yield in_header(recipe_of(name))
    for each in NOTES[name].get("evidence", []):
        yield in_evidence(**each)


def in_evidence(method: str, page: str = "results", over: str = "label-only") -> str:
    """What a page of evidence says of a method on CIFAR-100 with 50 images a class."""
    every = evidence_of(page)
    figure, found = sample_of(every.figures[method]), every.comparisons[over].get(method)
    gap = f", over {every.name_of(over)} {found.welch}" if found else ""
    where = f"on CIFAR-100 with 50 images a class ([{page}.md](evidence/{page}.md))"
    return f"{every.name_of(method)}: {figure} {where}{gap}"


@cache
def evidence_of(page: str) -> Results:
    """The figures of the first data set of a page of evidence."""
    suite = load_suite(EVIDENCE / ("suite.yml" if page == "results" else f"{page}.yml"))
    return results_of(suite, next(iter(suite.datasets)), read_table(EVIDENCE / f"{page}.csv"))


def in_header(recipe: str) -> str:
    """What the header of a recipe says that was measured."""
    header = bundled_recipes()[recipe].read_text(encoding="utf-8")
    (found,) = re.findall(r"Measured: (.+)\.$", header, re.MULTILINE)
    return str(found)


def recipe_of(name: str) -> str:
    """The recipe of a method, with the flags that make it use a loss or a gate."""
    return str(NOTES[name].get("recipe") or f"presets/{name.replace('_', '-')}")


def section(name: str, function: Function) -> Iterator[str]:
    """The lines about a method."""
    said = parts(function)
    formula, *more = paragraphs(said[""])
    formula = formula.removeprefix("Return ")
    yield f"\n### {name}\n\n{formula[0].upper()}{formula[1:]}\n"
    yield from (f"{each}\n" for each in more)
    if options(function):
        yield f"- Arguments: {options(function)}"
    sources = " ".join(said.get("Reference", "this project.").split())
    yield f"- Source: {sources}"
    published = NOTES[name].get("published", ["none collected"])
    yield from (f"- Published: {figure}." for figure in published)
    recipe = recipe_of(name)
    file = f"{recipe.partition(' ')[0]}.yaml"
    yield f"- Recipe: [{file}]({file}), `{RUN} {recipe}`"
    yield from (f"- Measured: {figure}." for figure in [*measured(name)] or ["not yet"])


def page() -> str:
    """The whole page."""
    lines = [INTRO]
    for title, methods in sections().items():
        lines.append(f"## {title}")
        for name, function in methods.items():
            lines += section(name, function)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
