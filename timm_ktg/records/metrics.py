"""What a run measures, by name."""

from __future__ import annotations

Metrics = dict[str, float]
