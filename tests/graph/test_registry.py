import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import timm_ktg as ktg
from tests.graph.test_losses import OWN
from timm_ktg.graph import gates, losses
from timm_ktg.graph.registry import Registry

GROUP = "timm_ktg.tests"


@pytest.fixture
def registry() -> Registry:
    return Registry("gate", GROUP, data=("losses", "context"))


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that puts a one-module distribution on sys.path."""
    installed = []

    def install(
        name: str,
        entries: dict[str, str],
        source: str = "",
        where: str = "site",
        group: str = GROUP,
    ) -> Path:
        site = tmp_path / where
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}\n" for key, value in entries.items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(lines))
        (site / f"{name}.py").write_text(source)
        monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
        importlib.invalidate_caches()
        installed.append(name)
        return site

    yield install
    for name in installed:
        sys.modules.pop(name, None)


def half(losses: torch.Tensor, context: Any, *, share: float = 0.5) -> torch.Tensor:
    return losses * share


def strict(losses: torch.Tensor, context: Any, *, threshold: float, mode: str = "x") -> Any:
    return losses * threshold


HALF = "def half(losses, context, *, share=0.5):\n    return losses * share\n"


# Our own


@pytest.mark.parametrize(
    ("module", "listed"),
    [
        (gates, ["correct", "cutoff", "linear", "negative_linear", "through"]),
        (losses, sorted(OWN)),
    ],
)
def test_own_functions_come_in_by_entry_points(module: Any, listed: list[str]) -> None:
    own = entry_points(group=module.registry.group)
    own = [entry for entry in own if entry.dist and entry.dist.name == "timm_ktg"]
    assert sorted({entry.name for entry in own}) == listed
    for entry in own:
        assert entry.name not in module.registry._decorated
        assert module.registry.get(entry.name) is entry.load()
        assert entry.module.startswith("timm_ktg.graph.")


# The decorator


def test_decorator_returns_the_function_and_registers_its_name(registry: Registry) -> None:
    assert registry.register(half) is half
    assert registry.names() == ["half"]
    assert registry.get("half") is half


def test_created_function_has_its_arguments_bound(registry: Registry) -> None:
    registry.register(half)
    ones = torch.ones(3)
    assert registry.create("half")(ones, None).tolist() == [0.5] * 3
    bound = registry.create("half", share=0.25)
    assert bound(ones, None).tolist() == [0.25] * 3
    assert (bound.name, bound.function, bound.arguments) == ("half", half, {"share": 0.25})


def test_bound_function_shows_its_arguments(registry: Registry) -> None:
    registry.register(strict)
    assert (
        str(registry.create("strict", threshold=0.9, mode="y")) == "strict(threshold=0.9, mode=y)"
    )
    assert str(ktg.create_gate("through")) == "through"


def test_names_are_in_alphabetical_order(registry: Registry) -> None:
    for function in (strict, half):
        registry.register(function)
    assert registry.names() == ["half", "strict"]


def test_two_functions_of_one_name_are_an_error_that_names_both(registry: Registry) -> None:
    registry.register(half)

    def other() -> None:
        def half(losses: torch.Tensor, context: Any) -> torch.Tensor:
            return losses

        registry.register(half)

    with pytest.raises(ValueError) as raised:
        other()
    message = str(raised.value)
    assert f"gate `half` is already registered by {__name__}.half; {__name__}.test_two" in message
    assert registry.get("half") is half


def test_name_of_an_installed_gate_is_an_error_that_names_both() -> None:
    def through(losses: torch.Tensor, context: Any) -> torch.Tensor:
        return losses

    with pytest.raises(ValueError) as raised:
        ktg.register_gate(through)
    assert "gate `through` is already registered by distribution `timm_ktg`" in str(raised.value)
    assert f"{__name__}.test_name_of_an_installed" in str(raised.value)


def test_same_definition_again_replaces_the_first() -> None:
    # As when a notebook cell is changed and run again.
    cell = "@ktg.register_gate\ndef mine(losses, context):\n    return losses * {}\n"
    notebook: dict[str, Any] = {"__name__": "__main__", "ktg": ktg}
    for factor in (2, 3):
        exec(cell.format(factor), notebook)
    assert ktg.create_gate("mine")(torch.ones(1), None).tolist() == [3.0]


@pytest.mark.parametrize(
    "source", ["def bad(losses): ...", "def bad(): ...", "def bad(losses, *, context): ..."]
)
def test_function_of_another_form_is_refused(registry: Registry, source: str) -> None:
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    with pytest.raises(ValueError, match=r"gate `bad` should have the form bad\(losses, context, "):
        registry.register(namespace["bad"])
    assert registry.names() == []


# Unknown names and arguments


def test_unknown_name_is_an_error_that_lists_and_suggests(registry: Registry) -> None:
    for function in (half, strict):
        registry.register(function)
    with pytest.raises(ValueError) as raised:
        registry.create("hlaf")
    assert str(raised.value) == (
        "`hlaf` is not a gate. Registered: half, strict. Did you mean `half`?"
    )


def test_unknown_argument_is_an_error_that_lists_and_suggests(registry: Registry) -> None:
    registry.register(strict)
    with pytest.raises(ValueError) as raised:
        registry.create("strict", treshold=0.9)
    assert str(raised.value) == (
        "gate `strict` takes no argument `treshold`. It takes: threshold, mode. "
        "Did you mean `threshold`?"
    )


def test_argument_of_a_function_without_any_is_an_error() -> None:
    with pytest.raises(ValueError, match="gate `through` takes no argument `share`. It takes none"):
        ktg.create_gate("through", share=0.5)


@pytest.mark.parametrize("argument", ["losses", "context"])
def test_data_of_a_gate_cannot_be_bound(argument: str) -> None:
    with pytest.raises(ValueError, match=f"takes no argument `{argument}`"):
        ktg.create_gate("correct", **{argument: 1.0})


def test_missing_required_argument_is_an_error(registry: Registry) -> None:
    registry.register(strict)
    with pytest.raises(ValueError, match="gate `strict` .* missing a required.*'threshold'"):
        registry.create("strict", mode="y")


def test_reserved_argument_cannot_be_bound() -> None:
    registry = Registry("loss", GROUP, data=("source",), call=("temperature",))

    @registry.register
    def cool(source: Any, *, temperature: float, scale: float = 1.0) -> Any:
        return source / temperature * scale

    expected = "loss `cool` takes no argument `temperature`. It takes: scale."
    with pytest.raises(ValueError, match=expected):
        registry.create("cool", temperature=2.0)
    assert registry.create("cool", scale=3.0)(8.0, temperature=2.0) == 12.0


# Other distributions


def test_gate_of_another_distribution_is_listed_without_importing_it(install: Install) -> None:
    install("ktg_half", {"half": "ktg_half:half"}, HALF, group="timm_ktg.gates")
    assert "half" in ktg.list_gates()
    with pytest.raises(ValueError, match="takes no argument"):
        ktg.create_gate("through", share=1)
    assert "ktg_half" not in sys.modules
    gate = ktg.create_gate("half", share=0.25)
    assert "ktg_half" in sys.modules
    assert gate(torch.ones(1), None).tolist() == [0.25]
    ktg.check_gate(gate)


BROKEN = {
    "needs": ("ktg_broken_needs", "import ktg_nowhere", r"ModuleNotFoundError: No module named"),
    "lacks": ("ktg_broken_lacks", "", r"AttributeError: .*lacks"),
    "number": ("ktg_broken_number", "number = 3", r"should be a function\. Found int"),
    "syntax": ("ktg_broken_syntax", "def (", r"SyntaxError: "),
    "raises": ("ktg_broken_raises", "1 / 0", r"ZeroDivisionError: "),
    "exits": ("ktg_broken_exits", "raise SystemExit(3)", r"SystemExit: 3"),
    "form": ("ktg_broken_form", "def form(losses): ...", r"should have the form form\(losses, con"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_entry_point_is_reported_when_asked_for(
    registry: Registry, install: Install, name: str
) -> None:
    for other, (distribution, source, _) in BROKEN.items():
        install(distribution, {other: f"{distribution}:{other}"}, source)
    install("ktg_half", {"half": "ktg_half:half"}, HALF)
    assert registry.names() == sorted([*BROKEN, "half"])
    distribution, _, sentence = BROKEN[name]
    with pytest.raises(ValueError, match=f"gate `{name}`.*{sentence}") as raised:
        registry.create(name)
    if name != "form":  # here the signature is wrong
        assert f"distribution `{distribution}` ({distribution}:{name})" in str(raised.value)
    assert registry.create("half")(torch.ones(1), None).tolist() == [0.5]


def test_name_of_two_distributions_is_an_error_that_names_both(
    registry: Registry, install: Install
) -> None:
    for distribution in ("ktg_one", "ktg_two"):
        install(distribution, {"half": f"{distribution}:half"}, HALF)
    assert registry.names() == ["half"]
    with pytest.raises(ValueError) as raised:
        registry.create("half")
    assert str(raised.value) == (
        "gate `half` is registered by distribution `ktg_one` and distribution `ktg_two`. "
        "Uninstall one of them."
    )


def test_distribution_that_is_found_twice_is_no_error(registry: Registry, install: Install) -> None:
    for where in ("site", "editable"):
        install("ktg_half", {"half": "ktg_half:half"}, HALF, where=where)
    assert registry.create("half")(torch.ones(1), None).tolist() == [0.5]


def test_function_may_be_decorated_and_an_entry_point(install: Install) -> None:
    # A gate that moves from a script into a package keeps its decorator.
    source = f"import timm_ktg as ktg\n\n@ktg.register_gate\n{HALF}"
    install("ktg_both", {"half": "ktg_both:half"}, source, group="timm_ktg.gates")
    assert ktg.create_gate("half", share=0.25)(torch.ones(1), None).tolist() == [0.25]
    assert ktg.list_gates().count("half") == 1


def test_entry_points_that_cannot_be_read_stop_only_who_asks_for_them(
    registry: Registry, install: Install
) -> None:
    site = install("ktg_bytes", {"lost": "ktg_bytes:lost"})
    install("ktg_half", {"half": "ktg_half:half"}, HALF, where="other")
    info = site / "ktg_bytes-1.0.dist-info"
    (info / "entry_points.txt").write_bytes(b"[timm_ktg.tests]\nlost = ktg_\xff\xfe:lost\n")
    assert registry.names() == ["half"]
    assert registry.create("half")(torch.ones(1), None).tolist() == [0.5]
    with pytest.raises(ValueError, match=r"`lost` is not a gate\..*cannot be read: .*ktg_bytes"):
        registry.create("lost")


def test_gate_of_another_distribution_that_is_called_as_ours_is_left_out(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="timm_ktg.graph")  # a search sets it higher
    entries = {"correct": "ktg_claims:half", "half": "ktg_claims:half"}
    install("ktg_claims", entries, HALF, group="timm_ktg.gates")
    assert ktg.create_gate("correct").function is gates.correct
    assert ktg.list_gates().count("correct") == 1
    assert caplog.messages == [
        "`correct` of distribution `ktg_claims` (ktg_claims:half) is left out: timm_ktg has one of "
        "that name."
    ]
    assert ktg.create_gate("half")(torch.ones(1), None).tolist() == [0.5]


def test_what_is_registered_in_isolation_is_forgotten_even_after_an_error(
    registry: Registry,
) -> None:
    def mine(losses: torch.Tensor, context: Any) -> torch.Tensor:
        return losses

    with pytest.raises(KeyError), registry.isolated():
        registry.register(mine)
        assert registry.names() == ["mine"]
        raise KeyError
    assert registry.names() == []
