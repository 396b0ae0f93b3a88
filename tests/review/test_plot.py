"""The figures of a page, as SVG and as what a hover finds."""

import json
import re

import pytest

from timm_ktg.review.plot import Plot


def paths_of(svg: str, color: str) -> list[str]:
    return [
        path
        for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
        if f"stroke: {color}" in style
    ]


def test_lines_and_dots_are_one_path_each_with_a_dot_for_a_single_point() -> None:
    plot = Plot(200)
    plot.lines("some", [[(0, 0), (1, 1)], [(2, 0.5)]], "#123456", dots=5, linewidth=1)
    line, dots = paths_of(plot.drawing("a plot").svg, "#123456")[:2]
    assert line.count("M") == 2 and line.count("L") == 1
    ends = re.findall(r"M([\d. ]+)L([\d. ]+)", dots)
    assert len(ends) == 3 and all(start == end for start, end in ends)


@pytest.mark.parametrize("legend", [0, 1, 40])
def test_hover_finds_a_point_where_it_is_drawn(legend: int) -> None:
    plot = Plot(200, "x", "y")
    points = [(0.0, 1.0), (2.0, 3.0)]
    plot.lines(None, [[point] for point in points], "#123456", dots=5)
    for index in range(legend):
        plot.lines(f"a long name of a line, number {index}", [points], "#654321")
    for point in points:
        plot.say(*point, "here </script>")
    drawing = plot.drawing("a plot")
    (dots,) = [path for path in paths_of(drawing.svg, "#123456") if "L" in path]
    drawn = [tuple(map(float, place.split())) for place in re.findall(r"M([\d. ]+)L", dots)]
    found = json.loads(drawing.points)
    assert [what for _, _, what in found] == ["here </script>"] * 2
    assert "</script>" not in drawing.points
    for (x, y, _), place in zip(found, drawn, strict=True):
        assert (x, y) == pytest.approx(place, abs=0.2)
    height = float(re.search(r'viewBox="0 0 700 ([\d.]+)"', drawing.svg)[1])  # type: ignore[index]
    assert all(0 < y < height for _, y, _ in found)


def test_names_are_taken_literally() -> None:
    plot = Plot(200, "cost in $ and $")
    plot.lines("_under & $over$", [[(0, 0), (1, 1)]], "#123456")
    svg = plot.drawing('a "plot"').svg
    assert "cost in $ and $" in svg and "aria-label='a \"plot\"'" in svg
