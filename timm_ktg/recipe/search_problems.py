"""What is wrong with the section `search`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pydantic_core import InitErrorDetails

from ..errors import did_you_mean, found
from .node_config import file_problem
from .section import from_one, problem

PRETRAINED = "pretrained"  # stands for timm's weights of a model

# Also where slashes are missing: a journal of such a name would show a password to all who list it.
_LOOKS_LIKE_A_URL = re.compile(r"postgres|(?!.:)[^/]*:/|[^/]*:.*[@:]|.*\bpassword\s*=")


def storage_problem(where: object) -> str | None:
    """Return what is wrong with where a study is kept, which is not repeated: it may be a secret.

    Args:
        where: As `search.storage` says.
    """
    said = "should be null, the path of a journal, or postgresql://... ."
    if where is not None and not isinstance(where, str):
        return f"{said} Found a {type(where).__name__}."
    if where is None or not _LOOKS_LIKE_A_URL.match(where):
        return None
    from sqlalchemy import make_url

    try:
        url = make_url(where)
    except Exception:  # its message may repeat the password
        return f"{said} Found a URL that cannot be read: user, password, host, port, name?"
    if "@" in (url.host or ""):  # part of the password would be taken for the host, and shown
        return f"{said} Found an @ too many: write those of a password as %40."
    return f"{said} Did you mean `postgresql`?" if url.drivername == "postgres" else None


def weights_problem(given: str) -> str | None:
    """Return what is wrong with a frozen node's weights: a file, or `pretrained`."""
    said = None if given == PRETRAINED else file_problem(given)
    near = did_you_mean(given, [PRETRAINED])
    return said and f"{said}{near or f' `{PRETRAINED}` stands for those of timm.'}"


def study_problem(name: str) -> str | None:
    """Return why a name cannot be that of a study, which is also a folder's below `runs`."""
    parts = PurePath(name).parts
    if not parts or ".." in parts or PurePath(name).is_absolute() or "\0" in name:
        return f"should name a folder below runs, without `..`. Found {name!r}."
    return None


def search_problems(
    data: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    """Yield the problems between fields.

    Args:
        data: What was given, by field.
        defaults: The default of each field.
    """
    yield from _label_loss_problems(data.get("label_losses"))
    yield from _method_problems(data, defaults)
    nodes = from_one(data.get("nodes", 1))
    if nodes == []:
        yield problem(("nodes",), "should be one or more numbers of nodes. Found none.")
    if nodes != [1] and not data.get("models"):
        yield problem(("models",), "should name a candidate for the auxiliaries. Found none.")
    if data.get("objective", "target") != "target":
        yield from _ensemble_problems(data, nodes)
    kinds = from_one(data.get("kinds"))
    kinds = [str(each) for each in kinds] if isinstance(kinds, list) else []
    if kinds and str(data.get("frozen", False)).lower() == "true" and "frozen" not in kinds:
        said = f"needs `frozen` among kinds. Found {', '.join(kinds)}."
        yield problem(("frozen",), said)
    yield from _given_problems(data.get("weights"), data.get("models"))
    interval = data.get("heartbeat_interval", defaults["heartbeat_interval"])
    grace = data.get("grace_period", defaults["grace_period"])
    try:
        if float(grace) <= float(interval):
            said = f"should be above heartbeat_interval, {interval}. Found {found(grace)}."
            yield problem(("grace_period",), said)
    except (TypeError, ValueError, OverflowError):
        pass  # pydantic reports it


def _method_problems(
    data: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    """Yield the fields that mean nothing to the method."""
    method = data.get("method", defaults["method"])
    others = {"short_runs": ("pruner", "min_resource"), "asha": ("rungs",)}
    for name in others.get(str(method), ()):  # pydantic reports another method
        # Who names no method, but a field of another one, may expect that one.
        if name in data and ("method" not in data or str(data[name]) != str(defaults[name])):
            other = "asha" if method == "short_runs" else "short_runs"
            said = f"is for search.method `{other}`. Found method `{method}`."
            yield problem((name,), said)
    if method == "short_runs" and data.get("sampler") == "tpe":
        said = (
            "should be random or brute_force with search.method `short_runs`, because tpe would "
            "mix the values of all rungs. Found tpe."
        )
        yield problem(("sampler",), said)


def _given_problems(weights: Any, models: Any) -> Iterator[InitErrorDetails]:
    names = from_one(models) if isinstance(models, list | str) else []
    for model in weights if isinstance(weights, Mapping) else ():
        if names and model not in names:
            said = f"should be a candidate model. Candidates: {', '.join(map(str, names))}."
            yield problem(("weights", model), f"{said}{did_you_mean(str(model), names)}")


def _ensemble_problems(data: Mapping[str, Any], nodes: Any) -> Iterator[InitErrorDetails]:
    kinds = data.get("kinds")
    kinds = list(map(str, kinds)) if isinstance(kinds, list) else []
    if data["objective"] == "ensemble" and kinds and "learns" not in kinds:
        said = f"should have `learns` where those that learn are judged. Found {', '.join(kinds)}."
        yield problem(("kinds",), said)
    for number in nodes if isinstance(nodes, list) else ():
        if str(number) == "1":
            yield problem(("nodes",), "should be 2 or more where an ensemble is judged. Found 1.")


def _label_loss_problems(losses: Any) -> Iterator[InitErrorDetails]:
    for number, loss in enumerate(losses if isinstance(losses, list) else ()):
        temperature = loss.get("temperature", 1) if isinstance(loss, Mapping) else 1
        if str(temperature) not in ("1", "1.0"):
            said = f"should be 1 on an edge from the label. Found {temperature}."
            yield problem(("label_losses", number, "temperature"), said)
