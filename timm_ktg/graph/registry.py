"""A registry of gates or of losses: a decorator in this process, and entry points."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, distributions
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import did_you_mean

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

_logger = logging.getLogger(__name__)

EXAMPLES = ("source", "destination")  # the arguments of a module class's constructor


@dataclass(frozen=True)
class Bound:
    """A registered function or module class with its arguments bound; an edge holds these.

    Args:
        name: The registered name.
        function: The function, whose leading positional parameters are the data; or a module class,
            which an edge builds once it knows the shapes at its ends.
        arguments: Values for keyword-only parameters; the others keep their defaults.
    """

    name: str
    function: Function
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *data: Any, **call: Any) -> torch.Tensor:
        """Call the function on `data` with the bound arguments and those in `call`."""
        result: torch.Tensor = self.function(*data, **self.arguments, **call)
        return result

    @property
    def is_class(self) -> bool:
        """Whether this is a module class, which `built` must instantiate."""
        return isinstance(self.function, type)

    def built(self, source: Any, destination: Any) -> Callable[..., torch.Tensor]:
        """Return the callable: this object, or a new module for the shapes at both ends.

        Args:
            source: An example output of the source.
            destination: An example output of the destination.
        """
        if not self.is_class:
            return self
        module: Callable[..., torch.Tensor] = self.function(source, destination, **self.arguments)
        return module

    def __str__(self) -> str:
        """Return the name and the bound arguments, as in `confident(threshold=0.9)`."""
        return with_arguments(self.name, self.arguments)


def with_arguments(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a name with arguments, as in `confident(threshold=0.9)`, without any look-up."""
    listed = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name}({listed})" if listed else name


def shown(function: Callable[..., Any] | None) -> str:
    """Return the name of a gate or a loss for messages, with its bound arguments."""
    return (
        str(function)
        if isinstance(function, Bound)
        else getattr(function, "__name__", str(function))
    )


class Registry:
    """Functions and module classes by name.

    A gate or loss with parameters of its own is a class. Its constructor takes an example output of
    the source and one of the destination, and its arguments by keyword; its `forward` has the form
    of a function.

    Entry points are listed without importing them and loaded on demand, so a broken one is
    reported only when it is asked for, and the others still work.

    Args:
        kind: The kind of thing registered, for messages: `gate`.
        group: The entry-point group: `timm_ktg.gates`.
        data: Names of the positional parameters that the graph passes.
        call: Names of the keyword parameters that the graph passes; users cannot bind them.
    """

    def __init__(
        self, kind: str, group: str, data: tuple[str, ...], call: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.group = group
        self.data = data
        self.call = call
        self._decorated: dict[str, Function] = {}

    def register(self, function: F) -> F:
        """Register a function under its own name; usable as a decorator.

        Raises:
            ValueError: The name is taken by another function, or the signature does not fit.
        """
        name = function.__name__
        self._check_signature(name, function, self._options(function))
        # A function can be decorated and also be an entry point of its own distribution.
        entries = [entry for entry in self._entries(name) if not _is_entry_of(function, entry)]
        taken = [_distribution(entry) for entry in entries]
        before = self._decorated.get(name)
        # The same definition again, as when a notebook cell runs twice, replaces the first.
        if before is not None and _origin(before) != _origin(function):
            taken.append(_origin(before))
        if taken:
            raise ValueError(
                f"{self.kind} `{name}` is already registered by {' and '.join(taken)}; "
                f"{_origin(function)} should choose another name."
            )
        self._decorated[name] = function
        return function

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Undo at the end of the block all registrations made inside it; for tests."""
        before = dict(self._decorated)
        try:
            yield
        finally:
            self._decorated = before

    def names(self) -> list[str]:
        """Return the names in alphabetical order, without importing any entry point."""
        names = _installed(self.group, tuple(sys.path))[0].names
        return sorted(names | self._decorated.keys())

    def get(self, name: str) -> Function:
        """Return the function registered as `name`.

        Raises:
            ValueError: The name is unknown, its entry point cannot be loaded, or two
                distributions claim it.
        """
        if name in self._decorated:
            return self._decorated[name]
        entries = self._entries(name)
        if not entries:
            unreadable = _installed(self.group, tuple(sys.path))[1]
            but = f" Entry points that cannot be read: {', '.join(unreadable)}." * bool(unreadable)
            raise ValueError(
                f"`{name}` is not a {self.kind}. Registered: {', '.join(self.names())}."
                f"{did_you_mean(name, self.names())}{but}"
            )
        if len(entries) > 1:
            owners = " and ".join(sorted(_distribution(entry) for entry in entries))
            raise ValueError(
                f"{self.kind} `{name}` is registered by {owners}. Uninstall one of them."
            )
        return self._load(entries[0])

    def create(self, name: str, **arguments: Any) -> Bound:
        """Return the function registered as `name` with `arguments` bound to it.

        Raises:
            ValueError: The name is unknown, or the function does not take these arguments.
        """
        function = self.get(name)
        options = self._options(function)
        for key in arguments:
            if key not in options:
                takes = f"It takes: {', '.join(options)}." if options else "It takes none."
                raise ValueError(
                    f"{self.kind} `{name}` takes no argument `{key}`. {takes}"
                    f"{did_you_mean(key, options)}"
                )
        self._check_signature(name, function, arguments)
        return Bound(name, function, arguments)

    def _entries(self, name: str) -> list[EntryPoint]:
        return list(_installed(self.group, tuple(sys.path))[0].select(name=name))

    def _load(self, entry: EntryPoint) -> Function:
        try:
            function = entry.load()
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{self._where(entry)} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if not callable(function):
            found = type(function).__name__
            raise ValueError(f"{self._where(entry)} should be a function. Found {found}.")
        return function  # type: ignore[no-any-return]

    def _where(self, entry: EntryPoint) -> str:
        """Return where an entry point comes from; only for messages, because it reads a file."""
        return f"{self.kind} `{entry.name}` of {_distribution(entry)} ({entry.value})"

    def _options(self, function: Function) -> list[str]:
        """Return the keyword parameters that a user can bind."""
        parameters = inspect.signature(function).parameters.values()
        return [
            parameter.name
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in self.call
        ]

    def _check_signature(self, name: str, function: Function, bound: Iterable[str]) -> None:
        """Raise ValueError unless the graph can call `function` once `bound` is bound."""
        if isinstance(function, type):
            if not issubclass(function, nn.Module):
                raise ValueError(
                    f"{self.kind} `{name}` should be a function or a subclass of torch.nn.Module. "
                    f"Found another class, {_origin(function)}."
                )
            self._check_form(name, function, EXAMPLES, bound)
            # The function is taken from the class, so it has `self` as a parameter.
            self._check_form(f"{name}.forward", function.forward, ("self", *self.data), self.call)
        else:
            self._check_form(name, function, self.data, [*self.call, *bound])

    def _check_form(
        self, name: str, function: Function, data: tuple[str, ...], keywords: Iterable[str]
    ) -> None:
        signature = inspect.signature(function)
        try:
            signature.bind(*data, **dict.fromkeys(keywords))
        except TypeError as error:
            expected = ", ".join([*data, "*", *self.call, "..."])
            raise ValueError(
                f"{self.kind} `{name}` should have the form {name}({expected}). "
                f"Found {name}{signature}: {error}."
            ) from None


@lru_cache(maxsize=4)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoints, tuple[str, ...]]:
    """Return a group's entry points, and the places whose entry points cannot be read.

    They are kept for a search path, because a scan reads many files.
    """
    found: dict[str, list[EntryPoint]] = {}
    unreadable: list[str] = []
    for distribution in distributions():
        try:
            entries = list(distribution.entry_points.select(group=group))
            if entries:  # the first of a distribution that is found twice
                found.setdefault(distribution.name, entries)
        except Exception as error:  # a distribution may hold anything
            unreadable.append(f"{getattr(distribution, '_path', distribution)} ({error})")
    everything = [entry for entries in found.values() for entry in entries]
    ours = {entry.name for entry in everything if _is_ours(entry)}
    kept = [entry for entry in everything if _is_ours(entry) or entry.name not in ours]
    for entry in everything:
        if entry not in kept:
            _logger.warning(
                "`%s` of %s (%s) is left out: timm_ktg has one of that name.",
                *(entry.name, _distribution(entry), entry.value),
            )
    return EntryPoints(kept), tuple(unreadable)


def _is_ours(entry: EntryPoint) -> bool:
    return entry.value.startswith(f"{__package__.partition('.')[0]}.")


def _origin(function: Function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _is_entry_of(function: Function, entry: EntryPoint) -> bool:
    return entry.value.replace(":", ".") == _origin(function)


def _distribution(entry: EntryPoint) -> str:
    return f"distribution `{entry.dist.name}`" if entry.dist else f"`{entry.value}`"
