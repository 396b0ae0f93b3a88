"""What an update of the paper's graphs costs on an accelerator, beside what it must cost.

    python -m tests.benchmarks.accelerator [--graphs 1 2 4 7] [--modes eager bf16 serial recorded]
        [--only check updates teachers]

An update is the main job's: augmentation, every node's forward, the losses of all edges, backward,
the optimizer's step. Everyone learns from the label and from all others; 100 classes, 50,000
random images [3, 32, 32] on the device. Modes: `eager` in float32; `bf16` the same in bfloat16;
`compiled` with torch.compile for each node, in bfloat16; `recorded` replayed as one CUDA graph with
a stream for each node, in bfloat16; `serial` the same on one stream. More: `recorded-fp32`,
`compiled-fp32` and `recorded-compiled`. All have timm's `sgd`, fused.

- `ms`: time on the wall of an update, the median over rounds of `--updates`, with the quartiles.
- `nodes`: over the sum of the same nodes' own updates, each with the label alone, in the same mode.
- `memory`: the most that torch had reserved, in GiB; replays use what their recording reserved.
- `floor`: the least that an update can take, over `ms`: the longer of its floating-point operations
  (torch's counter) at the rate of a large matrix product, and the bytes that its operators read and
  write, each tensor once an operator, at the rate of a large copy; both measured here, in the type
  of the mode (float32 as TF32, where convolutions compute so). A compiled update may need fewer
  bytes, for it fuses operators.

`check` does 50 updates of the paper's graph twice, eager and recorded, in float32 and with
deterministic algorithms, and says how far the weights are apart. `teachers` has the first node
learn from the label and from the others, which are frozen: computed by their models (`models`), by
their copies (`copies`), or looked up in full tables (`tables`).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import timm_ktg as ktg
from tests.benchmarks.device_limits import Bytes, rates, wait
from tests.benchmarks.ratios import provenance
from timm_ktg.data import MemoryLoader
from timm_ktg.graph.table import LogitTable
from timm_ktg.train.cuda_graph import RECORDERS, Batch, Do, RecordedUpdates, plain_updates
from timm_ktg.train.metrics import EpochMeter

CLASSES, IMAGES = 100, 50_000
VIEWED = 5_000  # images that tables have the views of
PAPER = ("resnet32_cifar", "wrn28_2_cifar", "resnet32_cifar", "resnet110_cifar")
GRAPHS = {1: PAPER[:1], 2: PAPER[:2], 4: PAPER, 7: (*PAPER, *PAPER[1:])}
MODES = (
    *("eager", "bf16", "serial", "recorded"),
    *("compiled", "compiled-fp32", "recorded-fp32", "recorded-compiled"),
)
PARTS = ("check", "updates", "teachers")
TEACHERS = ("models", "copies", "tables")
WARM_UP = 10  # updates


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        device: Where.
        batch_size: Images an update.
        updates: Updates a round.
        rounds: How many rounds count.
        channels_last: The layout of images and weights.
    """

    device: torch.device
    batch_size: int
    updates: int
    rounds: int
    channels_last: bool


@dataclass(frozen=True)
class Cost:
    """What an update costs.

    Args:
        ms: Milliseconds of an update, of each round.
        memory: GiB that were reserved at most; not a number on a CPU.
    """

    ms: tuple[float, ...]
    memory: float


class Run:
    """Updates of a graph on random images.

    Args:
        models: Of the nodes, the target first.
        mode: One of MODES.
        setting: What is measured.
        teachers: One of TEACHERS, if all but the first node are frozen.
    """

    def __init__(
        self, models: Sequence[str], mode: str, setting: Setting, teachers: str | None = None
    ) -> None:
        torch.manual_seed(0)
        recorded, compiled = records(mode), "compiled" in mode
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        graph = taught(models) if teachers else graph_of(models)
        graph = graph.to(setting.device, memory_format=layout)
        loader = loader_of(setting, VIEWED if teachers else IMAGES)
        if recorded and mode != "serial" and setting.device.type == "cuda":
            graph.fork(setting.device)
        if teachers == "copies":
            dtype = None if dtype_of(mode) == torch.float32 else dtype_of(mode)
            graph.speed_up_frozen(torch.randn(2, 3, 32, 32, device=setting.device), dtype)
        if teachers == "tables":
            logits = torch.ones(VIEWED * loader.views, CLASSES, dtype=torch.float16)
            graph.tables = {name: LogitTable(logits) for name in graph.frozen}
        if compiled:
            for name in graph.untapped:
                graph.model(name).compile()
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            cpu=setting.device.type == "cpu",
            mixed_precision="no" if dtype_of(mode) == torch.float32 else "bf16",
        )
        optimizer = create_optimizer_v2(
            [{"params": owned} for owned in graph.parameter_owners().values()],
            opt="sgd",
            lr=0.1,
            weight_decay=5e-4,
            momentum=0.9,
            fused=True,
        )
        model, prepared = accelerator.prepare(graph, optimizer)
        model.train()
        meter = EpochMeter(graph, accelerator)

        def update(batch: Batch, number: float | Tensor, progress: float | Tensor) -> None:
            """Do what `timm_ktg.train.loop.train_epoch` does, without accumulation and clipping."""
            images, labels = loader.make(*batch)
            prepared.zero_grad()
            views = [loader.view_of(*batch)] if graph.tables else []
            outputs = model(images.contiguous(memory_format=layout), *views)
            losses = graph.losses(outputs, labels, progress)
            accelerator.backward(losses.total)
            meter.update(losses, outputs, labels, number)
            prepared.step()

        self.graph, self.update = graph, update
        self.do: Do = plain_updates
        if recorded:
            self.do = RecordedUpdates(prepared, setting.device, required=True)
        self.setting, self.batches, self.number = setting, endless(loader, setting), 0

    def some(self, count: int) -> float:
        """Do updates and return the milliseconds of one."""
        wait(self.setting.device)
        start = time.perf_counter()
        for batch in itertools.islice(self.batches, count):
            self.number += 1
            self.do(self.update, batch, self.number, 0.5)
        wait(self.setting.device)
        return 1000 * (time.perf_counter() - start) / count

    def cost(self) -> Cost:
        """Measure."""
        cuda = self.setting.device.type == "cuda"
        if cuda:
            gc.collect()  # earlier runs, whose models refer to themselves
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.some(WARM_UP)
        ms = tuple(self.some(self.setting.updates) for _ in range(self.setting.rounds))
        return Cost(ms, torch.cuda.max_memory_reserved() / 2**30 if cuda else float("nan"))

    def counts(self) -> tuple[float, float]:
        """Return the floating-point operations of an update, and the bytes that it moves."""
        with FlopCounterMode(display=False) as flops:
            self.update(next(self.batches), 1, 0.5)
        with Bytes() as moved:
            self.update(next(self.batches), 1, 0.5)
        return float(flops.get_total_flops()), float(moved.total)


def dtype_of(mode: str) -> torch.dtype:
    """Return the type that a mode computes in."""
    return torch.float32 if mode == "eager" or mode.endswith("fp32") else torch.bfloat16


def graph_of(models: Sequence[str]) -> ktg.KnowledgeTransferGraph:
    """Return a graph in which everyone learns from the label and from all others."""
    names = [f"node{index}" for index in range(len(models))]
    nodes = [
        ktg.Node(name, timm.create_model(model, num_classes=CLASSES))
        for name, model in zip(names, models, strict=True)
    ]
    pairs = itertools.product(["label", *names], names)
    edges = [ktg.Edge(source, name) for source, name in pairs if source != name]
    return ktg.KnowledgeTransferGraph(nodes, edges, target=names[0])


def taught(models: Sequence[str]) -> ktg.KnowledgeTransferGraph:
    """Return a graph in which the first node learns from the label and from all others, frozen."""
    names = [f"node{index}" for index in range(len(models))]
    nodes = [
        ktg.Node(name, timm.create_model(model, num_classes=CLASSES), pretrained=name != names[0])
        for name, model in zip(names, models, strict=True)
    ]
    edges = [ktg.Edge(source, names[0]) for source in ("label", *names[1:])]
    return ktg.KnowledgeTransferGraph(nodes, edges, target=names[0])


@cache
def loader_of(setting: Setting, images: int) -> MemoryLoader:
    """Return batches of random images."""
    generator = torch.Generator().manual_seed(0)
    return MemoryLoader(
        torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(CLASSES, (images,), generator=generator),
        batch_size=setting.batch_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        device=setting.device,
        train=True,
    )


def endless(loader: MemoryLoader, setting: Setting) -> Iterator[Batch]:
    """Yield what whole batches are made of, of one epoch after another."""
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from itertools.islice(loader.draws(), len(loader.images) // setting.batch_size)


def line(graph: int, mode: str, cost: Cost, alone: float, floor: float) -> str:
    """Return a line of the table."""
    low, ms, high = statistics.quantiles(cost.ms)
    nodes = f"{ms / alone:.2f}" if graph > 1 else "-"
    return (
        f"{graph:5}  {mode:13}  {ms:8.2f}  {f'{low:.2f} .. {high:.2f}':18}{nodes:>6}  "
        f"{cost.memory:6.2f}  {100 * floor / ms:5.1f} %"
    )


def main() -> None:
    """Measure, and print the table line by line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accelerator")
    parser.add_argument("--graphs", type=int, nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES[:5]))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--updates", type=int, default=50, help="a round")
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    setting = Setting(
        torch.device(arguments.device),
        arguments.batch_size,
        arguments.updates,
        arguments.rounds,
        arguments.channels_last,
    )
    print(provenance())
    print(
        f"{setting.device.type}; batch {setting.batch_size}; "
        f"{setting.rounds} rounds of {setting.updates}"
    )
    if "check" in arguments.only:
        check(setting)
    recordable = setting.device.type in RECORDERS
    modes = [mode for mode in arguments.modes if recordable or not records(mode)]
    if "updates" in arguments.only:
        print("nodes  mode                 ms  quartiles          nodes  memory  floor", flush=True)
        for mode in modes:
            measure(mode, arguments.graphs, setting)
    if "teachers" in arguments.only:
        measure_teachers(modes, setting)


def records(mode: str) -> bool:
    """Return whether a mode records updates."""
    return mode == "serial" or mode.startswith("recorded")


def check(setting: Setting) -> None:
    """Compare recorded updates with eager ones."""
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True)
    states = []
    for mode in ("eager", "recorded-fp32" if setting.device.type in RECORDERS else "eager"):
        run = Run(PAPER, mode, setting)
        run.some(50)
        states.append({name: value.clone() for name, value in run.graph.state_dict().items()})
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)
    first, second = states
    apart = max(float((value - second[name]).abs().max()) for name, value in first.items())
    same = sum(torch.equal(value, second[name]) for name, value in first.items())
    print(
        f"check: after 50 updates {same} of {len(first)} tensors are the same, "
        f"and none is further apart than {apart:.1e}",
        flush=True,
    )


def measure_teachers(modes: Sequence[str], setting: Setting) -> None:
    """Measure a node that learns from frozen ones, in turn, so that all meet the same machine."""
    print("teachers  mode                 ms  quartiles           memory", flush=True)
    for mode in modes:
        for teachers in TEACHERS:
            if teachers == "tables" and records(mode):
                continue  # a look-up reads back which rows it needs
            cost = Run(PAPER, mode, setting, teachers).cost()
            low, ms, high = statistics.quantiles(cost.ms)
            print(
                f"{teachers:8}  {mode:13}  {ms:8.2f}  {f'{low:.2f} .. {high:.2f}':18}"
                f"  {cost.memory:6.2f}",
                flush=True,
            )


def measure(mode: str, graphs: Sequence[int], setting: Setting) -> None:
    """Measure graphs in a mode, and the nodes of each alone."""
    models = {model for graph in graphs for model in GRAPHS[graph]}
    alone = {model: Run([model], mode, setting).cost() for model in sorted(models)}
    eager = "eager" if dtype_of(mode) == torch.float32 else "bf16"
    product, copy = rates(setting.device, dtype_of(mode))
    for graph in graphs:
        nodes = GRAPHS[graph]
        cost = Run(nodes, mode, setting).cost() if graph > 1 else alone[nodes[0]]
        total = sum(statistics.median(alone[model].ms) for model in nodes)
        flops, moved = Run(nodes, eager, setting).counts()
        floor = 1000 * max(flops / product, moved / copy)
        print(line(graph, mode, cost, total, floor), flush=True)


if __name__ == "__main__":
    main()
