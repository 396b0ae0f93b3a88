"""The graph as a timm training task, for loops written against timm's contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import resolve_model_data_config
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..graph.graph import KnowledgeTransferGraph
from ..graph.predictor import predictor_of
from .clock import Clock, check_optimizer
from .preparation import graph_around

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


class KnowledgeTransferTask(TrainingTask):
    """Trains a knowledge transfer graph under timm's contract for training tasks.

    Args:
        graph: The graph; or a recipe, its path or its bundled name, in which `model` replaces the
            target.
        optimizer: An optimizer over the graph's parameters, such as
            `timm.optim.create_optimizer_v2(task.get_trainable_module(), ...)`; its steps advance
            the clock of the gates. None: it is made later, and found at its first step.
        total_updates: k_end, the optimizer updates of the whole run.
        device: Device of the task, where the graph is moved to; None: it stays where it is.
        dtype: Floating-point type of the task, likewise.
        verbose: Whether to log what timm's tasks log.
        model: The target, if `graph` is a recipe. If the recipe does not say how images are
            normalized, they are as the model's `pretrained_cfg` says.

    Raises:
        ValueError: The optimizer lacks the parameters of a node that learns (raised at its first
            step, if it is made later), or a loss or a gate has parameters that are not built yet.

    Example:
        >>> task = KnowledgeTransferTask("presets/dml", model=model, total_updates=updates)
        >>> optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw")
    """

    def __init__(
        self,
        graph: KnowledgeTransferGraph | Recipe | str | Path,
        optimizer: Optimizer | None = None,
        total_updates: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if not isinstance(graph, KnowledgeTransferGraph):
            if model is None:
                raise ValueError("A recipe should come with `model`, its target. Found none.")
            graph = graph_around(model, _normalized(graph, model), mean=None, std=None)
        graph.to(device=device, dtype=dtype)
        owners = graph.parameter_owners()
        if optimizer is not None:
            check_optimizer(optimizer, owners)
        self.trainable_module: nn.Module = graph
        self.clock = Clock(
            owners if optimizer is None else optimizer, total_updates, graph.update_emas
        )

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Args:
            input: Images [B, 3, H, W].
            target: Class indices [B], or class probabilities [B, C]; timm's name for the labels.

        Returns:
            `loss`, the sum over nodes; `output`, the target's logits [B, C]; and, for logging,
            `loss/<node>` and `loss/<source>-><destination>`.
        """
        graph = self._graph()
        outputs = self.trainable_module(input)
        losses = graph.losses(outputs, target, self.clock.progress)
        nodes = {f"loss/{name}": loss.detach() for name, loss in losses.nodes.items()}
        edges = {f"loss/{name}": loss for name, loss in losses.edges.items()}
        # An average that teaches nobody does not run in training; its network does.
        parts = graph.topology.made_from(graph.target)
        output = next(outputs[each].logits for each in parts[::-1] if each in outputs)
        return {"loss": losses.total, "output": output, **nodes, **edges}

    def prepare_distributed(
        self, device_ids: list[int] | None = None, **ddp_kwargs: Any
    ) -> KnowledgeTransferTask:
        """Wrap the whole graph for several processes, as timm's loop requests.

        Args:
            device_ids: The device of this process.
            ddp_kwargs: Further arguments of DistributedDataParallel.
        """
        self.trainable_module = DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def compile(  # type: ignore[override] # timm's signature, not torch's
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile the models of all nodes without taps in place, and return the target's.

        Args:
            backend: Backend of torch.compile.
            mode: Mode of torch.compile.
            compile_kwargs: Further arguments of torch.compile.
        """
        graph = self._graph()
        for name in graph.untapped:
            graph.model(name).compile(backend=backend, mode=mode, **compile_kwargs)
        return _target_of(graph)

    def get_eval_model(
        self, module: nn.Module | None = None, ema: bool = False
    ) -> nn.Module | None:
        """Return the target's model, for validation and export; for an ensemble, a predictor.

        Args:
            module: A wrapped graph; None: the task's own.
            ema: Whether to use the task's moving average, which is None if there is none.
        """
        if module is None:
            module = self.get_trainable_module(ema=ema)
        if module is None:
            return None
        return _target_of(_unwrapped(module))

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters of all nodes that learn.

        Args:
            exclude_head: Whether to leave out each node's last two parameters, as timm does.
        """
        owned = self._graph().owned_modules().values()
        end = -2 if exclude_head else None
        models = [parameter for model, *_ in owned for parameter in list(model.parameters())[:end]]
        edges = (module for _, *modules in owned for module in modules)
        return [*models, *(parameter for module in edges for parameter in module.parameters())]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the clock and the auxiliaries' weights.

        Args:
            module: A wrapped graph; None: the task's own.
            ema: Whether to use the task's moving average instead.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        graph = _unwrapped(module)
        auxiliaries = {
            name: network.model.state_dict()
            for name, network in graph.networks.items()
            if name != graph.target
        }
        edges = graph.edge_modules.state_dict()
        return {"updates": self.clock.updates, "auxiliaries": auxiliaries, "edges": edges}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` returned.

        Args:
            state: The state; if it is None or empty, nothing is loaded.
            strict: Whether to refuse weights that do not fit.
            module: A wrapped graph; None: the task's own.
            ema: Whether to use the task's moving average instead.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if not state or module is None:
            return
        graph = _unwrapped(module)
        if not ema:
            self.clock.updates = state["updates"]
        for name, weights in state["auxiliaries"].items():
            graph.model(name).load_state_dict(weights, strict=strict)
        graph.edge_modules.load_state_dict(state.get("edges", {}), strict=strict)

    def _graph(self) -> KnowledgeTransferGraph:
        return _unwrapped(self.trainable_module)


def _normalized(named: Recipe | str | Path, model: nn.Module) -> Recipe:
    """Return a recipe that says how images are normalized, as timm's training script does it."""
    # Imported here, because most users of the package need no recipes.
    from ..recipe.recipe import load_recipe

    recipe = load_recipe(named)
    if recipe.data.mean is not None:
        return recipe
    config = resolve_model_data_config(model)
    values = {name: tuple(config[name]) for name in ("mean", "std")}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=values)})


def _target_of(graph: KnowledgeTransferGraph) -> nn.Module:
    """Return the target as a module that maps images to logits."""
    return graph.model(graph.target) if graph.target in graph.networks else predictor_of(graph)


def _unwrapped(module: nn.Module) -> KnowledgeTransferGraph:
    """Unwrap the graph: timm's and torch's wrappers all hold it as `module`."""
    while not isinstance(module, KnowledgeTransferGraph):
        inner = module.module
        assert isinstance(inner, nn.Module)
        module = inner
    return module
