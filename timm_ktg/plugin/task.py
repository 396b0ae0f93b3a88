"""The graph as a timm training task, for loops written against timm's contract."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..graph.graph import KnowledgeTransferGraph
from ..graph.predictor import predictor_of
from .clock import Clock


class KnowledgeTransferTask(TrainingTask):
    """Trains a knowledge transfer graph under timm's contract for training tasks.

    Args:
        graph: The graph.
        optimizer: An optimizer over the graph's parameters, such as
            `timm.optim.create_optimizer_v2(graph, ...)`; its steps advance the clock of the gates.
        total_updates: k_end, the optimizer updates of the whole run.
        device: Device of the task.
        dtype: Floating-point type of the task.
        verbose: Whether to log what timm's tasks log.

    Raises:
        ValueError: The optimizer lacks the parameters of a node that learns, or a loss or a gate
            has parameters that are not built yet.
    """

    def __init__(
        self,
        graph: KnowledgeTransferGraph,
        optimizer: Optimizer,
        total_updates: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameters in graph.parameter_owners().items():
            if any(id(parameter) not in held for parameter in parameters):
                raise ValueError(
                    f"The optimizer should hold the parameters of the whole graph. Found node "
                    f"`{name}` left out; make it with create_optimizer_v2(graph, ...)."
                )
        self.trainable_module: nn.Module = graph
        self.clock = Clock(optimizer, total_updates, graph.update_emas)

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
