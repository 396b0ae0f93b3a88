"""The section `tracking`: where a run is shown beside its own directory."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from pydantic import BeforeValidator, ConfigDict, Field

from ..errors import did_you_mean
from .section import Section, checked

# Weights & Biases has fields of its own, for a run there is more than numbers.
TRACKERS = tuple(sorted(set(LOGGER_TYPE_TO_CLASS) - {"wandb"}))


def _from_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _tracker_problem(name: str) -> str | None:
    if name in TRACKERS:
        return None
    if name == "wandb":
        return "should not name wandb, which has a field of its own: --tracking.wandb true."
    near = did_you_mean(name, TRACKERS)
    return f"accelerate knows no tracker `{name}`.{near} It knows {', '.join(TRACKERS)}."


class TrackingConfig(Section):
    """Where a run is shown; the names are those of `wandb.init`."""

    model_config = ConfigDict(serialize_by_alias=True)

    wandb: bool = False
    """Show the run, or every trial of a search, in Weights & Biases."""
    project: str = "timm_ktg"
    """Project in Weights & Biases, and in other trackers that have projects."""
    entity: str | None = None
    """User or team in Weights & Biases; null: the default of who is logged in."""
    tags: list[str] = []
    """Tags of the run in Weights & Biases."""
    group: str | None = None
    """Group of the run in Weights & Biases; of a search's trials, null: the study."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """Mode of Weights & Biases; null: its own choice, which is WANDB_MODE, or else online."""
    with_: Annotated[
        list[Annotated[str, checked(_tracker_problem)]], BeforeValidator(_from_one)
    ] = Field(default=[], alias="with")
    """Other trackers that accelerate knows, such as tensorboard; for a training only."""
