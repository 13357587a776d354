"""Charts are well-formed, hold their data and survive odd numbers."""

import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from minimoe_dist.reporting.pictures import (
    Axis,
    Mark,
    Series,
    bars,
    comparison,
    heat_map,
    line_chart,
)
from minimoe_dist.reporting.scales import Scale, number

X, Y = Axis("step"), Axis("loss")


def circles(svg: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("circle")]


def test_points_are_where_their_values_are() -> None:
    picture = line_chart("t", [Series("a", [(0, 1), (5, 2), (10, 3)], dots=True)], X, Y)
    places = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in circles(picture.svg)]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x0 < x1
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y1  # upwards is less


def test_equal_factors_are_equal_lengths_on_a_logarithmic_axis() -> None:
    scale = Scale.over([1, 100], 0, 300, True)
    assert scale(10) - scale(1) == pytest.approx(scale(100) - scale(10))


def test_what_is_not_finite_leaves_no_point() -> None:
    points = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
    picture = line_chart("t", [Series("a", points, dots=True)], X, Y)
    assert len(circles(picture.svg)) == 2
    assert "nan" not in picture.svg and "inf" not in picture.svg


def test_many_points_are_thinned_and_the_last_stays() -> None:
    points = [(float(step), 1.0 / step) for step in range(1, 10_001)]
    picture = line_chart("t", [Series("a", points)], X, Y)
    assert len(picture.rows) < 310
    assert picture.rows[-1][0] == "10000"


def test_names_are_escaped() -> None:
    picture = bars("t", [('<b> & "x"', 1.0, "1")], "s")
    assert ElementTree.fromstring(picture.svg).attrib["aria-label"] == 't: <b> & "x" 1'


def rectangles(svg: str) -> list[tuple[float, float]]:
    """Where bars begin and how long they are; what lies behind them is left out."""
    found = [one.attrib for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("rect")]
    return [(float(one["x"]), float(one["width"])) for one in found if one["class"] != "rail"]


def test_a_bar_is_full_at_the_whole_and_not_at_the_best() -> None:
    shares = [("a", 0.4, "40 %"), ("b", 0.2, "20 %")]
    picture = bars("t", shares, "s", whole=(1.0, "the teacher"))
    (_, longer), (_, shorter) = rectangles(picture.svg)
    assert longer == pytest.approx(0.4 * 376, abs=0.1)
    assert shorter == pytest.approx(longer / 2, abs=0.1)
    assert "the teacher" in picture.svg
    (_, longest), _ = rectangles(bars("t", [("a", 1.25, ""), *shares[:1]], "s", whole=(1, "x")).svg)
    assert longest == pytest.approx(376, abs=0.1)


@pytest.mark.parametrize("values", [[-0.013, 0.4], [-0.013], [-5.0, -1.0], [0.0], [23.07, -23.07]])
def test_bars_stay_inside_their_box_on_their_side_of_zero(values: list[float]) -> None:
    named = [(str(value), value, "") for value in values]
    drawn = rectangles(bars("t", named, "s", whole=(1.0, "x")).svg)
    zero = {
        round(x if value >= 0 else x + width)
        for value, (x, width) in zip(values, drawn, strict=True)
    }
    assert len(zero) == 1
    assert all(x >= 2 and x + width <= 379.1 for x, width in drawn)


@pytest.mark.parametrize("values", [[(1, 5), (2, 5)], [(1, 0), (2, 0)], [(3, -1)]])
def test_flat_and_single_values_have_axes(values: list[tuple[float, float]]) -> None:
    picture = line_chart("t", [Series("a", values)], X, Y)
    assert ElementTree.fromstring(picture.svg) is not None


def test_a_table_has_a_row_for_each_place_and_a_gap_where_nothing_was() -> None:
    picture = line_chart("t", [Series("a", [(0, 1), (2, 3)]), Series("b", [(2, 4)])], X, Y)
    assert picture.header == ("step", "a", "b")
    assert picture.rows == [("0", "1", ""), ("2", "3", "4")]


def test_marks_are_numbered_and_teachers_are_squares() -> None:
    marks = [Mark("t", 10, 0.9, is_teacher=True), Mark("s", 1, 0.8, spread=0.02)]
    picture = comparison("t", marks, Axis("GMAC", True), Axis("score"))
    root = ElementTree.fromstring(picture.svg)
    shapes = [one for one in root.iter() if one.get("class", "").startswith("mark")]
    assert [one.tag.rpartition("}")[2] for one in shapes] == ["rect", "circle"]
    assert [name for name, _, _ in picture.legend] == ["1", "2"]
    assert picture.rows == [("t", "10", "0.9", "0"), ("s", "1", "0.8", "0.02")]


def test_marks_of_one_place_do_not_cover_each_other() -> None:
    marks = [Mark(name, 0.17, 0.5) for name in "abc"] + [Mark("t", 10, 0.5)]
    picture = comparison("t", marks, Axis("GMAC", True), Axis("score"))
    places = sorted(float(one.attrib["cx"]) for one in circles(picture.svg))
    assert all(right - left >= 18 for left, right in itertools.pairwise(places))


def test_steps_are_whole_numbers() -> None:
    picture = line_chart("t", [Series("a", [(1, 5), (2, 6)])], Axis("epoch", whole=True), Y)
    texts = [one.text for one in ElementTree.fromstring(picture.svg).iter() if one.text]
    assert "1" in texts and "2" in texts and not any(text.startswith("1.") for text in texts)


def test_a_heat_maps_colour_grows_with_the_value() -> None:
    picture = heat_map("t", ["a"], [[0.0, 1.0, 2.0, 4.0]], "expert", 2.0)
    root = ElementTree.fromstring(picture.svg)
    colours = [one.attrib["style"] for one in root.iter() if one.get("class") == "cell"]
    assert colours == ["--s:0%", "--s:50%", "--s:100%", "--s:100%"]


def test_small_values_of_a_heat_map_are_told_apart() -> None:
    picture = heat_map("t", ["a"], [[0.0011, 0.0029]], "head", 0.0029)
    texts = [one.text for one in ElementTree.fromstring(picture.svg).iter() if one.text]
    assert "0.0011" in texts and "0.0029" in texts
    assert picture.rows == [("a", "0.00110", "0.00290")]


def test_an_axis_of_zeros_has_no_negative_numbers() -> None:
    assert Scale.over([0.0, 0.0], 0, 100, False).ticks[0] == 0


def test_long_numbers_of_an_axis_leave_room_for_its_label() -> None:
    points = [(0, 0.00221), (5, 0.00235), (10, 0.00248)]
    picture = line_chart("t", [Series("a", points)], X, Y)
    ends = [
        float(one.attrib["x"]) - 8 * len(one.text or "")
        for one in ElementTree.fromstring(picture.svg).iter()
        if one.get("class") == "end"
    ]
    assert min(ends) >= 18  # the label, turned, is 12 wide and stands at 11


def test_rows_of_different_lengths_fit_one_map() -> None:
    picture = heat_map("t", ["a", "b"], [[1.0], [1.0, 1.0]], "expert", 2.0)
    assert {len(row) for row in picture.rows} == {len(picture.header)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1234, "1,234"), (12345, "12.3k"), (10_070_220, "10.1M"),
     (2e9, "2G"), (1.5e-6, "1.5e-06"), (-3.14159, "-3.14")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
