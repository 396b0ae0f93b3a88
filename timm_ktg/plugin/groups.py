"""Parameter groups for the auxiliaries, like those that the loop made for its model."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_weight_decay
from torch import nn


def groups_like(
    groups: list[dict[str, Any]], modules: list[nn.Module], options: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return groups of these modules' parameters with the options of the model's groups."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if not parameters:
        return []
    if options is not None:
        return [{**options, "params": parameters}]
    own = [
        {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in groups
    ]
    if len(own) == 1:
        return [{**own[0], "params": parameters}]
    # timm's split: no weight decay for biases, norms, and what `no_weight_decay` names.
    own.sort(key=lambda group: float(group.get("weight_decay", 0)))
    rest = [{k: v for k, v in group.items() if k != "weight_decay"} for group in own]
    if len(own) == 2 and own[0].get("weight_decay") == 0 and rest[0] == rest[1]:
        spared = {id(parameter) for module in modules for parameter in _spared(module)}
        split: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in parameters:
            split[id(parameter) not in spared].append(parameter)
        pairs = zip(own, split, strict=True)
        return [{**group, "params": each} for group, each in pairs if each]
    raise ValueError(
        f"The optimizer has {len(own)} groups with different options. Say which the auxiliaries "
        "should get: attach(..., group={'lr': ..., 'weight_decay': ...})."
    )


def _spared(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters without weight decay, as timm's optimizer factory chooses them."""
    named: Any = getattr(module, "no_weight_decay", tuple)()
    groups = param_groups_weight_decay(module, weight_decay=1.0, no_weight_decay_list=named)
    return [each for group in groups if not group["weight_decay"] for each in group["params"]]
