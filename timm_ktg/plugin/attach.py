"""A graph in your own training loop: other models teach yours, and little else changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from ..graph.graph import GraphLosses, KnowledgeTransferGraph
from ..graph.losses import NodeOutput
from .clock import Clock
from .groups import groups_like
from .hooks import Hook, autocast_now
from .preparation import graph_around, move_all_but_target, prepare

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe

_SEVERAL = (
    "attach works in one process, on the bare model. With several, build a KnowledgeTransferGraph "
    "of all models and wrap that: accelerator.prepare(graph, optimizer), or "
    "DistributedDataParallel(graph); then call graph(images) and graph.losses(...)."
)


def attach(
    model: nn.Module,
    graph: KnowledgeTransferGraph | Recipe | str | Path,
    optimizer: Optimizer,
    total_updates: int,
    group: dict[str, Any] | None = None,
    images: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Attachment:
    """Let the other nodes of a graph teach a model in its existing training loop.

    Whenever the model runs in training mode, the other nodes run on the same images and under the
    same autocast, also if accelerate has put that inside the model's forward. Their parameters are
    added to the optimizer, and its steps advance the clock of the gates.

    Clip with `handle.parameters()`, or node by node: `clip_grad_norm_(model.parameters(), ...)`
    leaves the other nodes' gradients as they are. `model.zero_grad()` clears theirs, too, unless it
    is told to set zeros. Copies of the model, such as timm's `ModelEmaV3`, and pickles of it carry
    nothing of the graph.

    Args:
        model: The target, as the loop calls it.
        graph: A graph whose target is this model; or a recipe, its path or its bundled name, in
            which this model replaces the target.
        optimizer: The loop's optimizer, before it gets a scheduler.
        total_updates: k_end, the optimizer updates of the whole run.
        group: Options of the auxiliaries' parameter group, such as lr; None: the model's options.
        images: A few images [B, 3, H, W], to try losses and gates on; needed if one has parameters.
        mean: Per-channel mean that the loop's images are normalized with; needed if a node of the
            recipe expects another one, as timm's pretrained models do. None: the recipe's.
        std: Per-channel standard deviation, likewise.

    Returns:
        A handle whose `loss(labels)` replaces the loop's criterion.

    Raises:
        ValueError: The model is attached already, is wrapped for several processes, or is not the
            graph's target, the options for the auxiliaries are ambiguous, images are needed but
            missing, a loss or a gate breaks its contract on them, or a graph with a mean and std
            gets others.

    Example:
        >>> handle = attach(model, "digits", optimizer, total_updates=epochs * len(loader))
        >>> for images, labels in loader:
        ...     model(images)
        ...     handle.loss(labels).backward()
        ...     optimizer.step()
    """
    if _several_processes() or isinstance(model, DistributedDataParallel | DataParallel):
        raise ValueError(_SEVERAL)
    if any(isinstance(hook, Hook) and hook.works for hook in model._forward_pre_hooks.values()):
        raise ValueError("The model is attached already. Call its handle's remove() first.")
    built_here = not isinstance(graph, KnowledgeTransferGraph)
    if not isinstance(graph, KnowledgeTransferGraph):
        graph = graph_around(model, graph, mean, std)
    elif mean is not None or std is not None:
        raise ValueError("mean and std should be given to the KnowledgeTransferGraph itself.")
    if graph.target not in graph.networks or graph.model(graph.target) is not model:
        raise ValueError(
            f"The graph's target `{graph.target}` should be the attached model. "
            "Found another model; give Node() the same object."
        )
    try:
        prepare(graph, next(model.parameters()).device, images)
        return Attachment(model, graph, optimizer, total_updates, group)
    except BaseException:
        if built_here:  # a given graph keeps its taps, so that it can be attached another way
            graph.network(graph.target).release()
        raise


def _several_processes() -> bool:
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return initialized and torch.distributed.get_world_size() > 1


class Attachment:
    """The handle that `attach` returns.

    Args:
        model: The target.
        graph: The graph.
        optimizer: The loop's optimizer.
        total_updates: The optimizer updates of the whole run.
        group: Options of the auxiliaries' parameter group.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: KnowledgeTransferGraph,
        optimizer: Optimizer,
        total_updates: int,
        group: dict[str, Any] | None,
    ) -> None:
        self.graph = graph
        self.auxiliaries = tuple(name for name in graph.members if name != graph.target)
        self._optimizer: Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._model = model
        self._device = next(model.parameters()).device
        self._autocast: AbstractContextManager[Any] | None = None
        self._outputs: dict[str, NodeOutput] | None = None
        self._warned = False
        self.clock = Clock(optimizer, total_updates, graph.update_emas)
        before = list(self._optimizer.param_groups)
        try:
            self._groups = self._add_groups(group)
        except ValueError:
            self.clock.stop()
            self._optimizer.param_groups[:] = before
            raise
        self._hooks = [
            model.register_forward_pre_hook(Hook(self._before)),
            model.register_forward_hook(Hook(self._after), with_kwargs=True),
            *(part.register_forward_pre_hook(Hook(self._inside)) for part in model.children()),
        ]

    def __repr__(self) -> str:
        """Return who teaches whom, and the progress of the run."""
        done = f"{self.clock.updates}/{self.clock.total_updates} updates"
        return f"Attachment({', '.join(self.auxiliaries)} -> {self.graph.target}, {done})"

    def losses(self, labels: Tensor) -> GraphLosses:
        """Return all losses of the model's last forward in training mode.

        Args:
            labels: Class indices [B], or class probabilities [B, C] (mixup, cutmix).

        Raises:
            ValueError: The model has not run in training mode since the last call.
        """
        if self._outputs is None:
            raise ValueError(
                "The model should run in training mode, with gradients, before each loss."
            )
        self._clear_with_model()
        outputs, self._outputs = self._outputs, None
        losses = self.graph.losses(outputs, labels, self.clock.progress)
        losses.total.register_hook(self._clear_with_model)  # type: ignore[no-untyped-call]
        return losses

    def loss(self, labels: Tensor) -> Tensor:
        """Return the sum of all nodes' losses, a scalar to call `backward` on; see `losses`."""
        return self.losses(labels).total

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all nodes that learn, the model's too, to clip their gradients.

        Their norm is that of all nodes together. To clip node by node, as `timm_ktg.train` does,
        take the values of `handle.graph.parameter_owners()`.
        """
        owners = self.graph.parameter_owners().values()
        return [parameter for parameters in owners for parameter in parameters]

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and the auxiliaries, to save along with model and optimizer."""
        return {
            "updates": self.clock.updates,
            "total_updates": self.clock.total_updates,
            "auxiliaries": {name: node.state_dict() for name, node in self._models().items()},
            "edges": self.graph.edge_modules.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state.

        Raises:
            ValueError: The state is from a run of another length, so the gates would not fit.
        """
        if state["total_updates"] != self.clock.total_updates:
            raise ValueError(
                f"total_updates should be {state['total_updates']}, as when the state was saved. "
                f"Found {self.clock.total_updates}."
            )
        self.clock.updates = state["updates"]
        for name, node in self._models().items():
            node.load_state_dict(state["auxiliaries"][name])
        self.graph.edge_modules.load_state_dict(state.get("edges", {}))

    def remove(self) -> None:
        """Restore the model and the optimizer to what they were before."""
        self.clock.stop()
        for hook in self._hooks:
            hook.remove()
        self.graph.network(self.graph.target).release()
        self._outputs = None
        added = {parameter for group in self._groups for parameter in group["params"]}
        # timm's Lookahead keeps its state in the optimizer that it wraps.
        state = getattr(self._optimizer, "_base_optimizer", self._optimizer).state
        for parameter in added:
            state.pop(parameter, None)
        # Not by the groups themselves, because loading a state makes new ones.
        kept = [
            group for group in self._optimizer.param_groups if added.isdisjoint(group["params"])
        ]
        self._optimizer.param_groups[:] = kept

    def _before(self, *_: Any) -> None:
        self.graph.network(self.graph.target).taps.clear()
        self._autocast = None

    def _inside(self, *_: Any) -> None:
        """Note the autocast of a running forward; the model's own hooks run outside of it."""
        if self._autocast is None:
            self._autocast = autocast_now(self._device)

    def _after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        target = self.graph.network(self.graph.target)
        if not (model.training and torch.is_grad_enabled()):
            target.taps.clear()
            return
        self._check(model)
        images = args[0] if args else next(iter(kwargs.values()))
        outputs = {self.graph.target: target.output_of(output)}
        self._inside()  # for a model without parts
        assert self._autocast is not None
        with self._autocast:
            self._run_auxiliaries(images, outputs)
        self._outputs = outputs

    def _check(self, model: nn.Module) -> None:
        """Look at what may have changed since the model was attached."""
        if model is not self._model or _several_processes():
            raise ValueError(_SEVERAL)
        if self._outputs is not None and not self._warned:
            self._warned = True
            warnings.warn(
                "The attached model runs in training mode again, but its last forward's loss was "
                "never asked for. handle.loss(labels) should replace the loop's criterion.",
                stacklevel=2,
            )
        device = next(model.parameters()).device
        if device != self._device:
            self._device = device
            move_all_but_target(self.graph, device)

    def _run_auxiliaries(self, images: Tensor, outputs: dict[str, NodeOutput]) -> None:
        """Add the auxiliaries' outputs to the target's."""
        self.graph.edge_modules.train()
        for name in self.graph.topology.in_training:
            if name != self.graph.target:
                node = self.graph.members[name]
                if not node.training:
                    node.train()
                outputs[name] = node(images, outputs)

    def _clear_with_model(self, _: Tensor | None = None) -> None:
        """Clear all gradients if the loop has cleared its model's, as by `model.zero_grad()`."""
        if all(parameter.grad is None for parameter in self._model.parameters()):
            for group in self._groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _models(self) -> dict[str, nn.Module]:
        """Return the auxiliaries' models by name."""
        networks = self.graph.networks
        return {name: networks[name].model for name in self.auxiliaries if name in networks}

    def _add_groups(self, options: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Give the auxiliaries' parameters to the optimizer, node by node."""
        before = list(self._optimizer.param_groups)
        if any("initial_lr" in group for group in before):
            raise ValueError(
                "attach should be called before the scheduler is made and before a saved state is "
                "loaded into the optimizer, or the auxiliaries miss both. Found `initial_lr` in "
                "its groups, which a scheduler adds."
            )
        names = {id(parameter): name for name, parameter in self.graph.named_parameters()}
        for name, (model, *edges) in self.graph.owned_modules().items():
            # The loop's optimizer already has the target's model, but not its edges.
            owned = edges if name == self.graph.target else [model, *edges]
            for group in groups_like(before, owned, options):
                if "param_names" in before[0]:  # it was made from named parameters
                    group["params"] = [(names[id(each)], each) for each in group["params"]]
                self._optimizer.add_param_group({**group, "node": name})
        return self._optimizer.param_groups[len(before) :]
