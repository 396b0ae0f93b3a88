"""The section `tracking`: where to show a run, besides its own directory."""

from __future__ import annotations

from typing import Annotated, Literal

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from pydantic import BeforeValidator, ConfigDict, Field

from ..errors import did_you_mean
from .section import Section, checked, from_one

# Weights & Biases has its own fields, because a run there is more than numbers.
TRACKERS = tuple(sorted(set(LOGGER_TYPE_TO_CLASS) - {"wandb"}))


def _tracker_problem(name: str) -> str | None:
    if name in TRACKERS:
        return None
    if name == "wandb":
        return "should not name wandb, which has its own field: --tracking.wandb true."
    near = did_you_mean(name, TRACKERS)
    return f"accelerate has no tracker `{name}`.{near} It has {', '.join(TRACKERS)}."


class TrackingConfig(Section):
    """Where to show a run; the names are those of `wandb.init`."""

    model_config = ConfigDict(serialize_by_alias=True)

    wandb: bool = False
    """Show the run, or every trial of a search, in Weights & Biases."""
    project: str = "timm_ktg"
    """Project in Weights & Biases, and in other trackers that have projects."""
    entity: str | None = None
    """User or team in Weights & Biases; null: the default of the logged-in user."""
    tags: list[str] = []
    """Tags of the run in Weights & Biases."""
    group: str | None = None
    """Group of the run in Weights & Biases; null: for a search's trials, the study."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """Mode of Weights & Biases; null: WANDB_MODE if it is set, else online."""
    with_: Annotated[list[Annotated[str, checked(_tracker_problem)]], BeforeValidator(from_one)] = (
        Field(default=[], alias="with")
    )
    """Other trackers that accelerate supports, such as tensorboard; for a training only."""
