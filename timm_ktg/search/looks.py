"""How often a study's test figures were shown, and which seeds were planned before the first time.

A choice that is made after a look at the test images is no longer independent of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study

SEEN = "test figures shown"  # attribute of the study: how many times
PLANNED = "planned seeds"  # attribute of the study: the final seeds when nothing had been shown


@dataclass(frozen=True)
class Looks:
    """The seeds of a study's test figures, and the looks at them.

    Args:
        seeds: The final seeds.
        planned: Those of the first look; None: an earlier version did not record them.
        seen: How many times test figures were shown, this time included.
    """

    seeds: tuple[int, ...]
    planned: tuple[int, ...] | None
    seen: int

    @property
    def notes(self) -> list[str]:
        """What one must know of the seeds and the looks, a sentence each."""
        shown = _listed(self.seeds)
        if self.planned is None:
            said = [f"Seeds {shown}; whether they were planned before the first look is unknown."]
        elif self.seeds == self.planned:
            said = [f"Seeds {shown}, as planned before the first look at test figures."]
        elif set(self.seeds) <= set(self.planned):
            said = [f"Seeds {shown}; planned were {_listed(self.planned)}."]
        else:
            added = _listed([seed for seed in self.seeds if seed not in self.planned])
            said = [
                f"Seeds {shown}; planned were {_listed(self.planned)}. Added after a first look at "
                f"test figures: {added}."
            ]
        if self.seen > 1:
            said.append(
                f"Test figures of this study were seen {self.seen} times, so what was chosen in "
                f"between may fit the test images."
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """Return the looks as result.json holds them."""
        planned = None if self.planned is None else list(self.planned)
        return {"seeds": list(self.seeds), "planned seeds": planned, "seen": self.seen}


def looks_before(study: Study) -> int:
    """Return how many times a study's test figures have been shown.

    An earlier version did not count; each set of final trainings that it began counts as one.
    """
    attributes = study.user_attrs
    if SEEN in attributes or PLANNED in attributes:
        return int(attributes.get(SEEN, 0))
    names = [each.study_name for each in study._storage.get_all_studies()]
    return sum(name.startswith(f"{study.study_name}/final-") for name in names)


def plan(study: Study, seeds: Sequence[int], before: int) -> None:
    """Note the final seeds as planned, unless test figures were shown already.

    Args:
        study: The study.
        seeds: The final seeds.
        before: What `looks_before` returned when this worker joined.
    """
    if not before and PLANNED not in study.user_attrs:
        study.set_user_attr(PLANNED, list(seeds))


def look(study: Study, seeds: Sequence[int], before: int) -> Looks:
    """Count a look at the test figures, the same for all workers that joined before it.

    Args:
        study: The study.
        seeds: The final seeds.
        before: What `looks_before` returned when this worker joined.
    """
    attributes = study.user_attrs
    seen = max(int(attributes.get(SEEN, 0)), before + 1)
    study.set_user_attr(SEEN, seen)
    planned = attributes.get(PLANNED)
    return Looks(tuple(seeds), None if planned is None else tuple(planned), seen)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
