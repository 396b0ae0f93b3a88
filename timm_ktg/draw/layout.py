"""Where nodes, arrows and words go, so that no text lies on another, nor on a node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..graph.topology import LABEL, Link
from .geometry import Curve, Points, Rect, Size, around

UNDER = 4.0  # between a box and what stands under it

_GAP = 4.0  # between any two texts
_TIP = 11.0  # what a word leaves free at both ends of its arrow
_LABEL_ARROW = 14.0  # what the label's arrow shows on either side of its word
_BEND, _ASIDE = 0.15, 6.0  # how an arrow keeps away from the one that comes back
_GROWTH = 1.07
_SIDE = 0.35  # sine of the angle up to which a node counts as one at the side


@dataclass(frozen=True)
class NodeSize:
    """How large a node is.

    Args:
        box: Its box.
        under: The text under the box; without width where there is none.
    """

    box: Size
    under: Size

    @property
    def whole(self) -> Size:
        """Both together."""
        below = UNDER + self.under.height if self.under.width else 0
        return Size(max(self.box.width, self.under.width), self.box.height + below)


@dataclass(frozen=True)
class Sizes:
    """How large everything is that finds a place.

    Args:
        nodes: Nodes in the order in which they go round.
        words: Words by edge.
        chip: The label's.
    """

    nodes: Mapping[str, NodeSize]
    words: Mapping[Link, Size]
    chip: Size


@dataclass(frozen=True)
class NodePlace:
    """Where a node is.

    Args:
        box: Its box.
        under: The text under the box.
        direction: Where its label lies.
    """

    box: Rect
    under: Rect
    direction: complex

    @property
    def shape(self) -> tuple[Rect, ...]:
        """What arrows end at."""
        texts = (self.under.grown(2),) if self.under.size.width else ()
        return (self.box.grown(1.5), *texts)

    @property
    def whole(self) -> Rect:
        """Box and text together."""
        size = NodeSize(self.box.size, self.under.size).whole
        return Rect(complex(self.box.center.real, self.box.top - size.height / 2), size)


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Args:
        nodes: Nodes by name.
        chips: The label's, by the edge that begins there.
        arrows: By edge.
        words: By edge.
    """

    nodes: Mapping[str, NodePlace]
    chips: Mapping[Link, Rect]
    arrows: Mapping[Link, Curve]
    words: Mapping[Link, Rect]

    @property
    def bounds(self) -> Rect:
        """What everything lies in."""
        rects = [place.whole for place in self.nodes.values()]
        rects += [*self.chips.values(), *self.words.values()]
        rects += [Rect(arrow.at(0.5), Size(0, 0)) for arrow in self.arrows.values()]
        return around(rects)


def lay_out(sizes: Sizes) -> Layout:
    """Return a layout, as small as one of this kind can be.

    Args:
        sizes: How large everything is.
    """
    scale = 1.0
    while True:  # ends, for when all is far apart there is room for each word on its own arrow
        layout = _attempt(sizes, scale)
        if layout is not None:
            return layout
        scale *= _GROWTH


def _attempt(sizes: Sizes, scale: float) -> Layout | None:
    """Return the layout at a scale, or None where not everything finds room."""
    nodes = _places(sizes, scale)
    chips, arrows, words = {}, {}, {}
    between = [link for link in sizes.words if link.source != LABEL]
    for link in (link for link in sizes.words if link.source == LABEL):
        placed = _label(nodes[link.destination], sizes, link)
        chips[link], arrows[link], words[link] = placed
    fixed = [*(place.whole for place in nodes.values()), *chips.values(), *words.values()]
    if any(rect.grown(_GAP).overlaps(other) for rect, other in combinations(fixed, 2)):
        return None
    for link in between:
        arrows[link] = _arrow(nodes[link.source], nodes[link.destination], _lane(link, between))
    found = _place_words({link: arrows[link] for link in between}, sizes.words, fixed)
    return None if found is None else Layout(nodes, chips, arrows, words | found)


def _places(sizes: Sizes, scale: float) -> dict[str, NodePlace]:
    """Return where the nodes are: on an ellipse, the first at its top; of two, on the right."""
    number = len(sizes.nodes)
    width = max(size.whole.width for size in sizes.nodes.values())
    height = max(size.whole.height for size in sizes.nodes.values())
    word = max((size.width for size in sizes.words.values()), default=0)
    if number <= 2:
        step = scale * (width + word + 2 * _TIP)
        places = [(complex(-step * index), 1j) for index in range(number)]
    else:
        wide = scale * (width + 0.5 * word) * max(1.0, number / 4.2)
        high = scale * (height + 50) * max(1.0, number / 2.8)
        angles = [math.pi / 2 - 2 * math.pi * index / number for index in range(number)]
        places = [
            (complex(wide * math.cos(angle), high * math.sin(angle)), _outward(angle))
            for angle in angles
        ]
    return {
        name: _node_place(size, *place)
        for (name, size), place in zip(sizes.nodes.items(), places, strict=True)
    }


def _node_place(size: NodeSize, center: complex, direction: complex) -> NodePlace:
    box = Rect(center, size.box)
    under = Rect(complex(center.real, box.bottom - UNDER - size.under.height / 2), size.under)
    return NodePlace(box, under, direction)


def _outward(angle: float) -> complex:
    if abs(math.sin(angle)) > _SIDE:
        return complex(0, math.copysign(1, math.sin(angle)))
    return complex(math.copysign(1, math.cos(angle)), 0)


def _label(node: NodePlace, sizes: Sizes, link: Link) -> tuple[Rect, Curve, Rect]:
    """Return the label's chip beside a node, the arrow between them, and the arrow's word.

    Where the label teaches a node by several edges, their chips lie side by side, so far apart that
    the words halfway to the node do not touch.
    """
    word, chip = sizes.words[link], sizes.chip

    def along(size: Size) -> float:
        return size.width if node.direction.real else size.height

    def across(size: Size) -> float:
        return size.height if node.direction.real else size.width

    links = [other for other in sizes.words if other.pair == link.pair]
    step = 2 * (max(across(sizes.words[other]) for other in links) + 2 * _GAP)
    shift = 1j * node.direction * step * (links.index(link) - (len(links) - 1) / 2)
    length = along(word) + 2 * _LABEL_ARROW
    reach = along(node.box.size) / 2
    if node.direction == -1j:  # below: from what stands under the box
        reach = node.box.center.imag - node.whole.bottom + 2
    border = node.box.center + node.direction * reach
    start = border + node.direction * length + shift
    middle = (border + start) / 2
    center = start + node.direction * along(chip) / 2
    return Rect(center, chip), Curve(start, middle, border), Rect(middle, word)


def _lane(link: Link, links: Sequence[Link]) -> int:
    """Return how far an arrow bends away from others between the same nodes; alone, not at all."""
    alike = [other for other in links if other.pair == link.pair]
    returned = any(other.pair == link.pair[::-1] for other in links)
    return alike.index(link) + 1 if returned or len(alike) > 1 else 0


def _arrow(source: NodePlace, destination: NodePlace, lane: int) -> Curve:
    """Return the arrow between two nodes; in a lane from 1 on, bent and a little aside."""
    start, end = source.box.center, destination.box.center
    middle = (start + end) / 2
    if lane:
        left = 1j * (end - start)
        aside = lane * _ASIDE * left / abs(left)
        start, middle, end = start + aside, middle + aside + lane * _BEND * left, end + aside
    return Curve(start, middle, end).outside(source.shape, destination.shape)


def _place_words(
    arrows: Mapping[Link, Curve], sizes: Mapping[Link, Size], fixed: Sequence[Rect]
) -> dict[Link, Rect] | None:
    """Return a place on its arrow for every word, or None where one finds no room.

    Args:
        arrows: The arrows.
        sizes: How large the words are.
        fixed: What is in place already.
    """
    lines = {link: arrow.points(48) for link, arrow in arrows.items()}
    placed: dict[Link, Rect] = {}
    # The shortest arrows have the least choice.
    for link in sorted(arrows, key=lambda link: abs(arrows[link].end - arrows[link].start)):
        options = list(_options(arrows[link], sizes[link], [*fixed, *placed.values()]))
        if not options:
            return None
        others = [line for other, line in lines.items() if other != link]
        costs = [_cost(off, rect, others) for off, rect in options]
        placed[link] = options[costs.index(min(costs))][1]
    return placed


def _options(arrow: Curve, size: Size, taken: Sequence[Rect]) -> Iterator[tuple[float, Rect]]:
    """Yield the free places on an arrow, each with how far from its middle it is."""
    ends = np.array([arrow.start, arrow.end])
    for share in np.linspace(0.5, 0.1, 21):
        for side in (share, 1 - share):
            rect = Rect(arrow.at(side), size)
            covers_end = rect.grown(_TIP).count(ends)
            if not covers_end and not any(rect.grown(_GAP).overlaps(other) for other in taken):
                yield 0.5 - share, rect


def _cost(off: float, rect: Rect, others: Sequence[Points]) -> float:
    """Return how much of other arrows a word would hide, and a little for leaving the middle."""
    tips = np.array([line[-1] for line in others])
    hidden = sum(rect.grown(2).count(line) for line in others)
    return hidden + 10 * rect.grown(8).count(tips) + 4 * off
