"""The table of timm's options: `python -m tests.timm_options` writes recipes/TIMM.md.

Which fields there are comes from the schema, and everything else from timm_options.yaml.
"""

import inspect
from pathlib import Path
from typing import Any

import yaml
from timm.data import create_loader, create_transform, resolve_data_config
from timm.optim import optimizer_kwargs
from timm.scheduler import scheduler_kwargs

from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.node_config import EdgeConfig, NodeConfig
from timm_ktg.recipe.tracking_config import TrackingConfig
from timm_ktg.recipe.train_config import TrainConfig

PAGE = Path(__file__).parents[1] / "recipes" / "TIMM.md"
NOTES: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
OPTIONS: dict[str, dict[str, str]] = {
    name: how or {} for options in NOTES["options"].values() for name, how in options.items()
}
NODE = "graph.nodes.NODE"
SECTIONS = {
    "data": DataConfig,
    "train": TrainConfig,
    NODE: NodeConfig,
    "tracking": TrackingConfig,
    f"{NODE}.learns_from.SOURCE": EdgeConfig,
}
FIELDS = [f"{path}.{name}" for path, schema in SECTIONS.items() for name in schema.model_fields]

INTRO = f"""\
# timm's train.py, option by option

What timm's training script offers, and what it is called here. Every field of a recipe is a flag,
too: `data.hflip` is `--data.hflip 0.5`. NODE is a node of the graph, SOURCE what it learns from.

Fields of the same name do the same, and so do their values. Defaults differ: here they are those of
the paper and of small images, and timm's are those of its ImageNet recipes. Beside the graph, its
losses and its gates, timm's script has no counterpart to `data.pipeline: memory`.

The options are those of the script's parser in timm {NOTES["version"]}
([source]({NOTES["source"]})), and whatever else timm's functions read.
`python -m tests.timm_options` writes this page from the schema and from `tests/timm_options.yaml`.
"""


class _Asked:
    """Settings that have no value, and remember what they were asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> None:
        self.names.add(name)

    def get(self, name: str, default: object = None) -> object:
        self.names.add(name)
        return default


def asked_by_timm() -> set[str]:
    """What the installed timm reads from the settings of a training, by the option's name."""
    asked = _Asked()
    optimizer_kwargs(asked)
    scheduler_kwargs(asked, decreasing_metric=False)
    resolve_data_config(asked)
    transform = inspect.signature(create_transform).parameters
    taken = set(transform) & set(inspect.signature(create_loader).parameters)
    arguments = NOTES["arguments"]
    names = {arguments.get(name, name) for name in (*asked.names, *transform, *taken)}
    return names - {None}


def place_of(option: str) -> str:
    """The field or the flag that is the option here; empty if there is none."""
    how = OPTIONS[option]
    if "here" in how or "absent" in how:
        return how.get("here", "")
    return next((field for field in FIELDS if field.rpartition(".")[2] == option), f"--{option}")


def page() -> str:
    """The whole page."""
    lines = [INTRO]
    for title, options in NOTES["options"].items():
        lines += [f"## {title}\n", "| timm | here | |", "|---|---|---|"]
        for option in options:
            flag, place, how = option.replace("_", "-"), place_of(option), OPTIONS[option]
            here = f"`{place}`" if place else "none"
            said = how.get("absent") or how.get("note", "")
            lines.append(f"| `--{flag}` | {here} | {said} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
