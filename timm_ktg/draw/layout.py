"""Places nodes, arrows and words so that no text covers another text or a node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from ..graph.topology import LABEL, Link, Pair
from .geometry import Curve, Points, Rect, Size, around
from .hull import PAD, Hull
from .ring import ring_of

UNDER = 4.0  # between a box and the text under it

_GAP = 4.0  # between any two texts
_TIP = 11.0  # free length that a word leaves at both ends of its arrow
_LABEL_ARROW = 14.0  # length of the label's arrow on either side of its word
_BEND, _ASIDE = 0.15, 6.0  # how far an arrow keeps from the one in the other direction
_GROWTH = 1.07
_SIDE = 0.35  # sine of the largest angle at which a node counts as beside the center


@dataclass(frozen=True)
class NodeSize:
    """The size of a node.

    Args:
        box: Size of the box.
        under: Size of the text under the box; zero width if there is none.
    """

    box: Size
    under: Size

    @property
    def whole(self) -> Size:
        """Size of the box and the text together."""
        below = UNDER + self.under.height if self.under.width else 0
        return Size(max(self.box.width, self.under.width), self.box.height + below)


@dataclass(frozen=True)
class Sizes:
    """The sizes of everything in the layout.

    Args:
        nodes: Sizes of the nodes, the target first.
        words: Sizes of the words, by edge.
        chip: Size of the label's chip.
        ensembles: Members of every ensemble, by its name.
        copies: Every network that has a slow copy, with its copy.
    """

    nodes: Mapping[str, NodeSize]
    words: Mapping[Link, Size]
    chip: Size
    ensembles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    copies: Sequence[Pair] = ()


@dataclass(frozen=True)
class NodePlace:
    """The place of a node.

    Args:
        box: The box.
        under: The text under the box.
        direction: The direction of its label.
    """

    box: Rect
    under: Rect
    direction: complex

    @property
    def shape(self) -> tuple[Rect, ...]:
        """The rectangles that arrows end at."""
        texts = (self.under.grown(2),) if self.under.size.width else ()
        return (self.box.grown(1.5), *texts)

    @property
    def whole(self) -> Rect:
        """The box and the text together."""
        size = NodeSize(self.box.size, self.under.size).whole
        return Rect(complex(self.box.center.real, self.box.top - size.height / 2), size)


@dataclass(frozen=True)
class Layout:
    """The place of everything.

    Args:
        nodes: Nodes by name.
        chips: The label's chips, by the edge that starts there.
        arrows: Arrows by edge.
        words: Words by edge.
        hulls: Regions around the members of ensembles, by the ensemble.
        members: Lines from members to ensembles that have no region.
        copies: Lines from networks to their slow copies.
    """

    nodes: Mapping[str, NodePlace]
    chips: Mapping[Link, Rect]
    arrows: Mapping[Link, Curve]
    words: Mapping[Link, Rect]
    hulls: Mapping[str, Hull]
    members: Mapping[Pair, Curve]
    copies: Mapping[Pair, Curve]

    @property
    def bounds(self) -> Rect:
        """The rectangle that holds everything."""
        rects = [place.whole for place in self.nodes.values()]
        rects += [*self.chips.values(), *self.words.values()]
        lines = (*self.arrows.values(), *self.members.values(), *self.copies.values())
        rects += [Rect(line.at(0.5), Size(0, 0)) for line in lines]
        corners = (corner for hull in self.hulls.values() for corner in hull.corners)
        rects += [Rect(complex(corner), Size(2 * PAD, 2 * PAD)) for corner in corners]
        return around(rects)


def lay_out(sizes: Sizes) -> Layout:
    """Return the smallest layout that has room for everything.

    Args:
        sizes: The sizes of everything.
    """
    scale = 1.0
    while True:  # ends, because a large enough scale has room for every word
        layout = _attempt(sizes, scale)
        if layout is not None:
            return layout
        scale *= _GROWTH


def _attempt(sizes: Sizes, scale: float) -> Layout | None:
    """Return the layout at a scale, or None if there is not enough room."""
    nodes = _places(sizes, scale)
    chips, arrows, words = {}, {}, {}
    between = [link for link in sizes.words if link.source != LABEL]
    for link in (link for link in sizes.words if link.source == LABEL):
        placed = _label(nodes[link.destination], sizes, link)
        chips[link], arrows[link], words[link] = placed
    fixed = [*(place.whole for place in nodes.values()), *chips.values(), *words.values()]
    if any(rect.grown(_GAP).overlaps(other) for rect, other in combinations(fixed, 2)):
        return None
    hulls = _hulls(nodes, chips, sizes.ensembles)
    members = [(m, name) for name, ms in sizes.ensembles.items() if name not in hulls for m in ms]
    lines = _lines(nodes, [*(link.pair for link in between), *members, *sizes.copies])
    arrows |= zip(between, lines, strict=False)
    ties = dict(zip([*members, *sizes.copies], lines[len(between) :], strict=True))
    found = _place_words(
        {link: arrows[link] for link in between}, sizes.words, fixed, list(ties.values())
    )
    if found is None:
        return None
    plain, dotted = ({pair: ties[pair] for pair in pairs} for pairs in (members, sizes.copies))
    return Layout(nodes, chips, arrows, words | found, hulls, plain, dotted)


def _hulls(
    nodes: Mapping[str, NodePlace],
    chips: Mapping[Link, Rect],
    ensembles: Mapping[str, Sequence[str]],
) -> dict[str, Hull]:
    """Return the regions around the members of ensembles, where they hold nothing else.

    A region reads better than lines from the members: an ensemble that teaches its own members has
    an arrow to each already, and a line beside each arrow would double the picture. On an ellipse
    there is room for a region wherever the members are neighbors, as they are for one ensemble or
    several without common members. Otherwise the region would hold other nodes or mix with another,
    and the ensemble is joined to its members by lines.
    """
    hulls: dict[str, Hull] = {}
    for name, members in ensembles.items():
        box, *texts = nodes[name].shape
        hull = Hull.of([nodes[member].whole for member in members], box, texts)
        others = [place.whole for other, place in nodes.items() if other not in (*members, name)]
        others += [chip for link, chip in chips.items() if link.destination not in members]
        apart = not any(hull.overlaps(other) for other in hulls.values())
        if apart and not any(map(hull.touches, others)) and not hull.holds(nodes[name].whole):
            hulls[name] = hull
    return hulls


def _places(sizes: Sizes, scale: float) -> dict[str, NodePlace]:
    """Place the nodes on an ellipse, the first at the top; if there are two, on the right."""
    number, ring = len(sizes.nodes), list(sizes.nodes)
    if sizes.ensembles or sizes.copies:
        pairs = [link.pair for link in sizes.words if link.source != LABEL]
        ring = ring_of(ring, sizes.ensembles, [*pairs, *sizes.copies])
    width = max(size.whole.width for size in sizes.nodes.values())
    height = max(size.whole.height for size in sizes.nodes.values())
    word = max((size.width for size in sizes.words.values()), default=0)
    if number <= 2:
        step = scale * (width + word + 4 * _TIP)
        places = [(complex(-step * index), 1j) for index in range(number)]
    else:
        wide = scale * (width + 0.5 * word) * max(1.0, number / 4.2)
        high = scale * (height + 50) * max(1.0, number / 2.8)
        angles = [math.pi / 2 - 2 * math.pi * index / number for index in range(number)]
        # The more nodes there are, the closer an ensemble would be to the region of the others.
        out = {name: max(1.0, number / 5) for name in sizes.ensembles}
        reach = [out.get(name, 1.0) for name in ring]
        places = [
            (each * complex(wide * math.cos(angle), high * math.sin(angle)), _outward(angle))
            for each, angle in zip(reach, angles, strict=True)
        ]
    return {
        name: _node_place(sizes.nodes[name], *place)
        for name, place in zip(ring, places, strict=True)
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

    If the label has several edges to a node, their chips lie side by side, far enough apart that
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
    if node.direction == -1j:  # below: from the text under the box
        reach = node.box.center.imag - node.whole.bottom + 2
    border = node.box.center + node.direction * reach
    start = border + node.direction * length + shift
    middle = (border + start) / 2
    center = start + node.direction * along(chip) / 2
    return Rect(center, chip), Curve(start, middle, border), Rect(middle, word)


def _lines(nodes: Mapping[str, NodePlace], pairs: Sequence[Pair]) -> list[Curve]:
    """Return a line from node to node for every pair; those between the same nodes keep apart."""
    lines = []
    for index, (source, destination) in enumerate(pairs):
        alone = pairs.count((source, destination)) + pairs.count((destination, source)) == 1
        lane = 0 if alone else 1 + pairs[:index].count((source, destination))
        lines.append(_arrow(nodes[source], nodes[destination], lane))
    return lines


def _arrow(source: NodePlace, destination: NodePlace, lane: int) -> Curve:
    """Return the arrow between two nodes; from lane 1 on it is bent and a little aside."""
    start, end = source.box.center, destination.box.center
    middle = (start + end) / 2
    if lane:
        left = 1j * (end - start)
        aside = lane * _ASIDE * left / abs(left)
        bend = (2 * lane - 1) * _BEND * left  # the words need room between two arrows
        start, middle, end = start + aside, middle + aside + bend, end + aside
    return Curve(start, middle, end).outside(source.shape, destination.shape)


def _place_words(
    arrows: Mapping[Link, Curve],
    sizes: Mapping[Link, Size],
    fixed: Sequence[Rect],
    ties: Sequence[Curve],
) -> dict[Link, Rect] | None:
    """Return a place for every word on its arrow, or None if one has no room.

    Args:
        arrows: The arrows.
        sizes: The sizes of the words.
        fixed: Rectangles that are already taken.
        ties: Lines without words.
    """
    lines = {link: arrow.points(48) for link, arrow in arrows.items()}
    without = [tie.points(48) for tie in ties]
    placed: dict[Link, Rect] = {}
    # The shortest arrows have the fewest places.
    for link in sorted(arrows, key=lambda link: abs(arrows[link].end - arrows[link].start)):
        options = list(_options(arrows[link], sizes[link], [*fixed, *placed.values()]))
        if not options:
            return None
        others = [line for other, line in lines.items() if other != link] + without
        costs = [_cost(off, rect, others) for off, rect in options]
        placed[link] = options[costs.index(min(costs))][1]
    return placed


def _options(arrow: Curve, size: Size, taken: Sequence[Rect]) -> Iterator[tuple[float, Rect]]:
    """Yield the free places on an arrow, each with its distance from the middle."""
    ends = np.array([arrow.start, arrow.end])
    for share in np.linspace(0.5, 0.1, 21):
        for side in (share, 1 - share):
            rect = Rect(arrow.at(side), size)
            covers_end = rect.grown(_TIP).count(ends)
            if not covers_end and not any(rect.grown(_GAP).overlaps(other) for other in taken):
                yield 0.5 - share, rect


def _cost(off: float, rect: Rect, others: Sequence[Points]) -> float:
    """Return a cost: how much of other arrows a word hides, plus its distance from the middle."""
    tips = np.array([line[-1] for line in others])
    hidden = sum(rect.grown(2).count(line) for line in others)
    return hidden + 10 * rect.grown(8).count(tips) + 4 * off
