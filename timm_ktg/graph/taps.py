"""Taps: the outputs of named modules inside an unchanged model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import did_you_mean


class TapError(ValueError):
    """The output of a module cannot be handed over."""


class _Keep:
    """A hook that keeps the last output, from the first `clear` on.

    A copy has nothing to keep for: a copy of the model alone, such as a moving average, must not
    hold activations. A copy of the whole graph clears it before each forward.
    """

    def __init__(self) -> None:
        self.listens = False
        self.runs = 0
        self.output: Any = None
        self.version: int | None = None

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.listens:
            self.runs += 1
            self.output, self.version = output, _version(output)

    @property
    def is_overwritten(self) -> bool:
        """Whether the output is no longer what the module returned."""
        return _version(self.output) != self.version

    def __reduce__(self) -> tuple[type[_Keep], tuple[()]]:
        return _Keep, ()

    def clear(self) -> None:
        self.listens, self.runs, self.output, self.version = True, 0, None, None


def _version(output: Any) -> int | None:
    """Return a number that changes when a tensor is changed in place; None: it has none."""
    if not isinstance(output, Tensor) or output.is_inference():
        return None
    return output._version


class Taps:
    """Captures the outputs of named submodules: register once, read after each forward.

    The outputs keep their autograd graph. `read` hands them over and forgets them, so no step holds
    the activations of the one before.

    Args:
        model: The model; only hooks are added.
        names: Module names as in `model.named_modules()`, such as `layer3` or `blocks.2.mlp`.

    Raises:
        ValueError: The model has no module of that name, or a name is given twice.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.names = tuple(names)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"taps should be different modules. Found {', '.join(self.names)}.")
        modules = dict(model.named_modules())
        for name in self.names:
            if name not in modules or not name:
                raise ValueError(
                    f"`{name}` is not a module of {type(model).__name__}."
                    f"{did_you_mean(name, modules)}"
                )
        self._keeps = {name: _Keep() for name in self.names}
        self._handles = [
            modules[name].register_forward_hook(keep) for name, keep in self._keeps.items()
        ]
        self.clear()

    def clear(self) -> None:
        """Forget what was captured since the last `read`, for example after a failed forward."""
        for keep in self._keeps.values():
            keep.clear()

    def read(self) -> dict[str, Tensor]:
        """Return the outputs of the last forward by module name, and forget them.

        Raises:
            TapError: Since the last `read`, a module ran twice or not at all, or returned
                something other than one tensor, or the model has overwritten what it returned.
        """
        overwritten = {name for name, keep in self._keeps.items() if keep.is_overwritten}
        runs = {name: keep.runs for name, keep in self._keeps.items()}
        outputs = {name: keep.output for name, keep in self._keeps.items()}
        self.clear()
        for name, output in outputs.items():
            if runs[name] != 1:
                times = f"{runs[name]} times" if runs[name] else "not at all"
                raise TapError(f"Module `{name}` should run once in a forward. It ran {times}.")
            if not isinstance(output, Tensor):
                raise TapError(
                    f"Module `{name}` should return one tensor. Found {type(output).__name__}."
                )
            if name in overwritten:
                raise TapError(
                    f"The output of module `{name}` should not be overwritten. An operation in "
                    "place, such as an activation, does so; tap that module instead."
                )
        return outputs

    def remove(self) -> None:
        """Remove the hooks from the model and forget what was captured."""
        for handle in self._handles:
            handle.remove()
        self.clear()
