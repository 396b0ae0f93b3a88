"""Loading, checking and writing recipes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from ..errors import RecipeError, did_you_mean, found, one_line
from ..records.files import write_whole
from .data_config import DataConfig
from .graph_config import GraphConfig
from .model_ema import model_ema_problem, with_model_ema
from .node_config import KINDS
from .section import Location, Section, problem
from .tracking_config import TrackingConfig
from .train_config import PLATEAU, TrainConfig

S = TypeVar("S", bound=Section)

# Fields that depend on the machine and change the result of a run by rounding at most.
PLACE = {
    "data": {"dataset", "workers", "cache"},
    # Earlier versions wrote the last two; see `_FORMER`.
    "train": {
        "torchcompile",
        "channels_last",
        "cuda_graph",
        "deterministic",
        "device",
        "teacher_table",
        "log_interval",
        "capture",
        "node_threads",
    },
    "tracking": {*TrackingConfig.model_fields, "with"},
}

# Former fields of `train` and their names now; None: dropped.
_FORMER = {"capture": "cuda_graph", "node_threads": None}

# Common names for fields that are called something else in a recipe.
MEANT = {"learning_rate": "lr", "optimizer": "opt", "scheduler": "sched"}
MEANT |= {"val_interval": "eval_interval"}
MEANT |= dict.fromkeys(("betas", "eps", "opt_betas", "opt_eps", "amsgrad"), "opt_kwargs")
MEANT |= dict.fromkeys(("dampening", "foreach", "fused", "maximize", "nesterov"), "opt_kwargs")

WANDB_SWEEP = "wandb-sweep.yaml"  # input of `wandb sweep`, not a recipe

SEARCH = "search.yaml"  # in a search's directory: its recipe, and the name of its study

_PACKAGE = Path(__file__).parent.parent


class Recipe(Section):
    """All settings of a run."""

    graph: GraphConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_model_ema(cls, values: Any) -> Any:
        """Add the node that `train.model_ema` stands for."""
        return with_model_ema(values)

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems between sections."""
        said = model_ema_problem(data)
        if said:
            yield problem(("train", "model_ema"), said)
        schedule, metric = _value(data, "train", "sched"), _value(data, "train", "eval_metric")
        watching = {"eval_metric": metric, "sched": schedule if schedule == PLATEAU else None}
        for field, value in watching.items():
            if value and not _has_validation(data):
                said = f"needs validation images: data.holdout or data.val_split. Found {value}."
                yield problem(("train", field), said)
        interval = _value(data, "train", "eval_interval") or 1
        if schedule == PLATEAU and str(interval) != "1":
            said = f"should be 1: the schedule plateau looks at every epoch. Found {interval}."
            yield problem(("train", "eval_interval"), said)


def _has_validation(data: Mapping[str, Any]) -> bool:
    return any(str(_value(data, "data", each) or 0) != "0" for each in ("holdout", "val_split"))


def _value(data: Mapping[str, Any], section: str, field: str) -> Any:
    """Return a field's value in a recipe of which sections may be checked; None: not given."""
    values = data.get(section)
    return values.get(field) if isinstance(values, Mapping) else getattr(values, field, None)


def bundled_recipes() -> dict[str, Path]:
    """Return the bundled recipes by name, such as `digits` or `cifar100/dml-2`."""
    # In a wheel they are inside the package, in a checkout beside it.
    folder = _PACKAGE / "recipes"
    if not folder.is_dir():
        folder = _PACKAGE.parent / "recipes"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
        if path.name != WANDB_SWEEP
    }


def find_recipe(name: str, where: str = "recipe") -> Path:
    """Return the file of a recipe.

    Args:
        name: The path of a recipe, the directory of a run, or the name of a bundled recipe.
        where: The argument that named it, for messages.

    Raises:
        RecipeError: There is no such recipe.
    """
    for path in (Path(name), Path(name, "recipe.yaml")):
        with suppress(OSError):  # the name is too long for a path
            if path.is_file():
                return path
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    raise RecipeError([f"{where}: `{name[:100]}` is {_instead_of_a_recipe(name, bundled)}"])


def _instead_of_a_recipe(name: str, bundled: Collection[str]) -> str:
    """Return what a name stands for that is no recipe, and where there is a recipe, if anywhere."""
    folder, neither = Path(name), "neither a file nor a bundled recipe."
    own, best = folder / SEARCH, folder / "best.yaml"
    with suppress(OSError):  # the name is too long for a path
        if best.is_file():
            return f"a search's directory. The recipe of its best graph is {best}."
        if own.is_file():
            return f"a search's directory, with no best.yaml so far. The search's recipe is {own}."
        if folder.is_dir():
            return f"{neither} It is a directory without a recipe.yaml."
    return f"{neither}{did_you_mean(name, bundled)} Bundled: {', '.join(bundled)}."


def name_recipe(path: Path) -> str:
    """Return the name for a run of the recipe at `path`.

    It is the name of the bundled recipe, of the run that holds the recipe, or of the file.
    """
    for name, bundled in bundled_recipes().items():
        if path.resolve() == bundled.resolve():
            return name
    return path.resolve().parent.name if path.name == "recipe.yaml" else path.stem


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # no type hints in PyYAML
    """YAML as people expect it: 1e-8 is a number, and duplicate keys are errors."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key `{min(twice)}` is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


# What a text that is no YAML raises. RecursionError: it is nested too deeply; ValueError: a number
# has thousands of digits, or a date does not exist.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        YAMLError, ValueError, RecursionError: The text is not YAML; see `yaml_said`.
    """
    return yaml.load(text, _Loader)


def yaml_said(error: BaseException) -> str:
    """Return why a text is no YAML, and where, in one line that does not repeat the text."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return one_line(error)
    context, problem = getattr(error, "context", None), getattr(error, "problem", None)
    what = ": ".join(each for each in (context, problem) if each)
    return f"{what[:1].upper()}{what[1:]} (line {mark.line + 1}, column {mark.column + 1})."


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the values in a recipe's file, unchecked.

    Raises:
        RecipeError: The file is not YAML, or not a mapping.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except YAML_ERRORS as error:
        raise RecipeError([f"{path}: should be YAML. {yaml_said(error)}"]) from None
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read. {error.strerror}."]) from None
    if not isinstance(values, dict):
        raise RecipeError([f"{path}: should be a mapping of sections. Found {found(values)}."])
    train = values.get("train")
    if isinstance(train, dict):
        for former, now in _FORMER.items():
            value = train.pop(former, None)
            if now is not None and value is not None:
                train.setdefault(now, value)
    return values


def check_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe for these values.

    Raises:
        RecipeError: The values are wrong; lists all problems.
    """
    if "search" in values and "graph" not in values:
        raise RecipeError(
            [
                "search: this recipe has no graph to train. Search for one with timm_ktg.search "
                "and train its best.yaml."
            ]
        )
    if "graph" in values and values["graph"] is None:
        raise RecipeError(
            [
                "graph: should be given. Found none. A search's recipe has no graph; the best.yaml "
                "that the search writes has one."
            ]
        )
    return check_section(Recipe, values)


def check_section(section: type[S], values: Mapping[str, Any]) -> S:
    """Return the section for these values.

    Raises:
        RecipeError: The values are wrong; lists all problems.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [_line(section, details) for details in error.errors(include_url=False)]
        raise RecipeError(problems) from None


def load_recipe(name: Recipe | str | Path) -> Recipe:
    """Return the recipe at a path, or the bundled recipe of that name; a recipe itself as it is.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; lists all problems.
    """
    return name if isinstance(name, Recipe) else check_recipe(read_recipe(find_recipe(str(name))))


def save_recipe(recipe: Section, path: Path) -> None:
    """Write a recipe with all fields, so that it means the same in later versions."""
    values = recipe.model_dump(mode="json")
    write_whole(path, yaml.safe_dump(values, sort_keys=False))


def same_run(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two recipes' values give the same run, apart from the machine."""
    return without(PLACE, first) == without(PLACE, second)


def without(fields: Mapping[str, set[str]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values without some fields.

    Args:
        fields: The names of the fields, by section.
        values: The recipe, unchecked.
    """
    left = {
        name: {key: value for key, value in section.items() if key not in fields.get(name, ())}
        for name, section in values.items()
    }
    return {name: section for name, section in left.items() if section}


def _line(section: type[BaseModel], details: Any) -> str:
    location: Location = details["loc"]
    # pydantic's marks for a key and for a kind of node
    where = ".".join(str(part) for part in location if part != "[key]" and part not in KINDS)
    if details["type"] == "extra_forbidden":
        key, fields = str(location[-1]), _fields_at(section, location[:-1])
        hint = did_you_mean(MEANT.get(key, key), fields) or f" Keys: {', '.join(fields)}."
        return f"{where}: unknown key.{hint}"
    if details["type"] == "missing":
        return f"{where}: should be given."
    if details["type"] == "problem":
        return f"{where}: {details['msg']}"
    choices = re.findall("`([^`]+)`", details["msg"]) if details["type"] == "literal_error" else []
    hint = did_you_mean(str(details["input"]), choices)
    return f"{where}: {details['msg']}. Found {found(details['input'])}.{hint}"


def _fields_at(section: Any, location: Location) -> list[str]:
    """Return the valid keys at a location, following fields, mappings and unions."""
    for part in location:
        if part in KINDS:
            section = KINDS[str(part)]
            continue
        fields = getattr(section, "model_fields", {})
        if part in fields:
            section = fields[part].annotation
        # any other part is a key of a mapping, so go on with its values
        arguments = getattr(section, "__args__", ())
        if arguments and part not in fields:
            section = arguments[-1]
    return list(getattr(section, "model_fields", {}))
