"""Write a node of a run as a file of torch.export or ONNX, checked against the node itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .recipe.trained import open_run
from .terminal import Parser, printable
from .use.exporting import export
from .use.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Export a node.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code; see `run_program`.
    """
    return run_program(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    given = _parser().parse_args(argv)
    difference = export(open_run(given.run), given.node, given.format, given.output)
    print(f"{printable(given.output)}  logits within {difference:.1e} of the node's own")


def _parser() -> Parser:
    parser = Parser(prog="python -m timm_ktg.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument("--node", help="the node; by default the target")
    parser.add_argument("--format", choices=("torch", "onnx"), required=True)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
