"""Forward hooks that capture the outputs of named modules inside an unmodified model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .errors import did_you_mean


class _Keep:
    """A hook that keeps outputs; an object, so that a deep copy of a model keeps its own."""

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs = outputs

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.outputs.append(output)


class OutputCapture:
    """Captures what named submodules of a model return: register once, read after each forward.

    The captured outputs keep their autograd graph; `read` hands them over and forgets them, so
    that no step holds the activations of the one before.

    Args:
        model: The model; it is not changed beyond the hooks.
        names: Module names as in `model.named_modules()`, such as `layer3` or `blocks.2.mlp`.

    Raises:
        ValueError: The model has no module of that name, or a name is given twice.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._outputs: dict[str, list[Any]] = {name: [] for name in self.names}
        if len(self._outputs) < len(self.names):
            raise ValueError(f"taps should be different modules. Found {', '.join(self.names)}.")
        modules = dict(model.named_modules())
        for name in self.names:
            if name not in modules or not name:
                raise ValueError(
                    f"`{name}` is no module of {type(model).__name__}.{did_you_mean(name, modules)}"
                )
        self._handles = [
            modules[name].register_forward_hook(_Keep(self._outputs[name])) for name in self.names
        ]

    def clear(self) -> None:
        """Forget what was captured since the last `read`, as after a forward that failed."""
        for outputs in self._outputs.values():
            outputs.clear()

    def read(self) -> dict[str, Tensor]:
        """Return the outputs of the last forward by module name, and forget them.

        Raises:
            ValueError: Since the last `read`, a module ran twice or not at all, or returned
                something other than one tensor.
        """
        captured = {name: list(outputs) for name, outputs in self._outputs.items()}
        self.clear()
        for name, outputs in captured.items():
            if len(outputs) != 1:
                times = f"{len(outputs)} times" if outputs else "not at all"
                raise ValueError(f"Module `{name}` should run once in a forward. It ran {times}.")
            if not isinstance(outputs[0], Tensor):
                raise ValueError(
                    f"Module `{name}` should return one tensor. Found {type(outputs[0]).__name__}."
                )
        return {name: outputs[0] for name, outputs in captured.items()}

    def remove(self) -> None:
        """Take the hooks off the model and forget what was captured."""
        for handle in self._handles:
            handle.remove()
        self.clear()
