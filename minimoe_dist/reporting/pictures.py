"""Draws charts as inline SVG, without script or network, in the page's light or dark palette.

Every picture carries a description (for those who do not see it) and its numbers (as a table).
Text is 12 units in a box of 380, so that it stays legible where a telephone shows the box whole.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .scales import Scale, number

WIDTH, HEIGHT = 380, 250
COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 42
_MOST_POINTS = 300
_MARK = 18  # diameter of a numbered mark
_DIGIT = 8.0  # the widest digit of usual fonts

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line or cloud.

    Attributes:
        name: name in the legend.
        points: (x, y), in the order that a line connects them.
        colour: number of a palette colour.
        line: whether points are connected.
        dots: whether points are marked.
        dashed: whether the line is dashed.
        spreads: half heights of the points' error bars; empty without.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    line: bool = True
    dots: bool = False
    dashed: bool = False
    spreads: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """An axis: its label, whether it is logarithmic, and whether only whole numbers are ticks."""

    label: str
    logarithmic: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Picture:
    """A chart for a page.

    Attributes:
        title: its heading.
        svg: the markup.
        header: header of the table behind it.
        rows: rows of that table.
        legend: (kind, colour, name); kinds are ``line``, ``dash``, ``dot``, ``square`` and numbers.
        note: text about how it was measured, or what is missing.
    """

    title: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[tuple[str, int, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """A numbered point of a comparison; a teacher is drawn as a square."""

    name: str
    x: float
    y: float
    spread: float | None = None
    is_teacher: bool = False


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, note: str = "") -> Picture:
    """Draws lines and clouds over two axes.

    Args:
        title: the heading.
        series: at least one, with at least one finite point.
        x: the horizontal axis.
        y: the vertical axis.
        note: below the picture.
    """
    drawn = [_finite(line, x, y) for line in series]
    drawn = [line for line in drawn if line.points]
    points = [point for line in drawn for point in line.points]
    across, up = _scales(points, [s for line in drawn for s in _ends(line)], x, y)
    shapes = "".join("".join(_shapes(line, across, up)) for line in drawn)
    description = f"{title}: {y.label} over {x.label}. " + "; ".join(
        f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}"
        for line in drawn
    )
    return Picture(
        title,
        _svg(description, _axes(across, up, x, y) + shapes),
        (x.label, *(line.name for line in drawn)),
        _joined(drawn),
        [(_kind(line), line.colour, line.name) for line in drawn],
        note,
    )


def comparison(title: str, marks: Sequence[Mark], x: Axis, y: Axis, note: str = "") -> Picture:
    """Draws numbered points, named in the legend; equal x stand side by side."""
    ends = [m.y + sign * (m.spread or 0.0) for m in marks for sign in (-1, 1)]
    across, up = _scales([(m.x, m.y) for m in marks], ends, x, y)
    shapes = []
    for place, (mark, position) in enumerate(
        zip(marks, _side_by_side(marks, across), strict=True), 1
    ):
        shapes.append(_numbered(mark, place, position, up(mark.y), up))
    description = f"{title}: {y.label} over {x.label}. " + "; ".join(
        f"{m.name}: {number(m.y)} at {number(m.x)}" for m in marks
    )
    spread = any(m.spread is not None for m in marks)
    return Picture(
        title,
        _svg(description, _axes(across, up, x, y) + "".join(shapes)),
        ("", x.label, y.label, *(["±"] if spread else [])),
        [
            (m.name, number(m.x), f"{m.y:.4g}", *([number(m.spread or 0.0)] if spread else []))
            for m in marks
        ],
        [
            (str(place), (place - 1) % COLOURS, m.name + (" (teacher)" if m.is_teacher else ""))
            for place, m in enumerate(marks, start=1)
        ],
        note,
    )


def bars(
    title: str,
    values: Sequence[tuple[str, float, str]],
    unit: str,
    note: str = "",
    whole: tuple[float, str] | None = None,
) -> Picture:
    """Draws horizontal bars from 0 on, to the left where a value is negative.

    Args:
        title: the heading.
        values: (name, finite value, what is written behind the bar).
        unit: unit of the values.
        note: below the picture.
        whole: a value, and its name, that the scale reaches at least and that a line marks: a bar
            is full only there, or beyond where others are longer.
    """
    numbers = [value for _, value, _ in values]
    low, high = min(0.0, *numbers), max(0.0, *numbers, whole[0] if whole else 0.0)
    high = high if high > low else low + 1.0
    scale = Scale(low, high, 2.0, WIDTH - 2.0, False, [])
    height = 40 * len(values) + (26 if whole else 8)
    shapes = []
    for place, (name, value, label) in enumerate(values):
        top = 40 * place + 4
        start, end = sorted((scale(0.0), scale(value)))
        shapes.append(
            f'<text x="2" y="{top + 12}">{escape(name)}</text>'
            f'<text x="{WIDTH - 2}" y="{top + 12}" class="value">{escape(label)}</text>'
            f'<rect x="2" y="{top + 18}" width="{WIDTH - 4}" height="12" rx="3" class="rail"/>'
            f'<rect x="{start:.1f}" y="{top + 18}" width="{max(1.0, end - start):.1f}" '
            f'height="12" rx="3" class="fill{place % COLOURS}"/>'
        )
    marked = [whole] if whole else []
    if low < 0:
        is_near = whole is not None and scale(whole[0]) - scale(0.0) < WIDTH / 2
        marked.append((0.0, "" if is_near else "0"))
    for value, name in marked:
        place_of = scale(value)
        kind = "end" if place_of > WIDTH / 2 else "start"
        shapes += [
            f'<line x1="{place_of:.1f}" x2="{place_of:.1f}" y1="{top}" y2="{top + 16}" '
            'class="axis"/>'
            for top in range(20, 40 * len(values), 40)
        ]
        shapes.append(
            f'<text x="{place_of:.1f}" y="{height - 5}" class="{kind}">{escape(name)}</text>'
        )
    description = f"{title}: " + "; ".join(f"{name} {label}" for name, _, label in values)
    rows = [(name, number(value)) for name, value, _ in values]
    return Picture(title, _svg(description, "".join(shapes), height), ("", unit), rows, (), note)


def heat_map(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    columns: str,
    most: float,
    note: str = "",
) -> Picture:
    """Draws a grid of cells, the darker the larger; rows may be of different lengths.

    Args:
        title: the heading.
        names: names of the rows.
        values: values of each row's cells.
        columns: what a column is, such as "expert".
        most: the value of the strongest colour.
        note: below the picture.
    """
    widest = max(len(row) for row in values)
    left = 8 + 6.6 * max(len(name) for name in names)
    cell = (WIDTH - left - 4) / widest
    tall = 26 if len(values) < 14 else 16
    decimals = max(2, 1 - math.floor(math.log10(most)))
    shapes = []
    for row, (name, numbers) in enumerate(zip(names, values, strict=True)):
        top = row * tall + 2
        middle = top + tall / 2 + 4
        shapes.append(
            f'<text x="{left - 6:.1f}" y="{middle:.1f}" class="end">{escape(name)}</text>'
        )
        for column, value in enumerate(numbers):
            share = min(1.0, max(0.0, value / most))
            position = left + column * cell
            shapes.append(
                f'<rect x="{position:.1f}" y="{top}" width="{max(cell - 1, 0.5):.1f}" '
                f'height="{tall - 1}" style="--s:{100 * share:.0f}%" class="cell"/>'
            )
            label = f"{value:.{decimals}f}"
            if cell >= _DIGIT * (len(label) - 0.25) and tall > 20:
                ink = "on" if share > 0.6 else "off"
                shapes.append(
                    f'<text x="{position + cell / 2:.1f}" y="{middle:.1f}" class="middle {ink}">'
                    f"{label}</text>"
                )
    bottom = len(values) * tall + 18
    shapes += _column_numbers(left, cell, widest, bottom, columns)
    flat = [value for row in values for value in row]
    description = (
        f"{title}: {len(values)} rows of {columns}s from {min(flat):.3g} to {max(flat):.3g}"
    )
    return Picture(
        title,
        _svg(description, "".join(shapes), bottom + 22),
        ("", *(f"{columns} {number + 1}" for number in range(widest))),
        [
            (name, *(f"{v:.{decimals + 1}f}" for v in row), *([""] * (widest - len(row))))
            for name, row in zip(names, values, strict=True)
        ],
        (),
        note,
    )


def _column_numbers(
    left: float, cell: float, widest: int, bottom: float, columns: str
) -> Iterator[str]:
    every = max(1, math.ceil(22 / cell))
    for column in range(0, widest, every):
        position = left + (column + 0.5) * cell
        yield f'<text x="{position:.1f}" y="{bottom}" class="middle">{column + 1}</text>'
    middle = left + widest * cell / 2
    yield f'<text x="{middle:.1f}" y="{bottom + 16}" class="middle label">{escape(columns)}</text>'


def _finite(series: Series, x: Axis, y: Axis) -> Series:
    """Drops a series' points that cannot be drawn, and thins out very many."""
    spreads = list(series.spreads) or [0.0] * len(series.points)
    drawable = [
        (point, spread)
        for point, spread in zip(series.points, spreads, strict=True)
        if all(map(math.isfinite, point))
        and (point[0] > 0 or not x.logarithmic)
        and (point[1] > 0 or not y.logarithmic)
    ]
    every = math.ceil(len(drawable) / _MOST_POINTS) or 1
    thinned = [
        pair for place, pair in enumerate(drawable) if place % every == 0 or pair is drawable[-1]
    ]
    return Series(
        series.name,
        [point for point, _ in thinned],
        series.colour,
        series.line,
        series.dots,
        series.dashed,
        [spread for _, spread in thinned] if series.spreads else (),
    )


def _ends(series: Series) -> Iterator[float]:
    for place, (_, y) in enumerate(series.points):
        spread = series.spreads[place] if series.spreads else 0.0
        yield from (y - spread, y + spread)


def _scales(
    points: Sequence[Point], heights: Sequence[float], x: Axis, y: Axis
) -> tuple[Scale, Scale]:
    positive = [height for height in heights if height > 0 or not y.logarithmic]
    up = Scale.over(positive, HEIGHT - _BOTTOM, _TOP, y.logarithmic)
    # The axis's label stands left of the longest number.
    left = max(_LEFT, 26 + _DIGIT * max((len(number(tick)) for tick in up.ticks), default=0))
    across = Scale.over([x_value for x_value, _ in points], left, WIDTH - _RIGHT, x.logarithmic)
    if x.whole:
        across.ticks = [tick for tick in across.ticks if tick == int(tick)]
    return across, up


def _axes(across: Scale, up: Scale, x: Axis, y: Axis) -> str:
    floor, right, left = HEIGHT - _BOTTOM, WIDTH - _RIGHT, round(across.start, 1)
    parts = []
    for tick in up.ticks:
        position = up(tick)
        parts.append(f'<path d="M{left} {position:.1f}H{right}" class="grid"/>')
        parts.append(
            f'<text x="{left - 6:.1f}" y="{position + 4:.1f}" class="end">{number(tick)}</text>'
        )
    for tick in across.ticks:
        position = across(tick)
        parts.append(f'<path d="M{position:.1f} {floor}v4" class="axis"/>')
        parts.append(
            f'<text x="{position:.1f}" y="{floor + 17}" class="middle">{number(tick)}</text>'
        )
    parts.append(f'<path d="M{left} {_TOP}V{floor}H{right}" class="axis"/>')
    middle = (left + right) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" class="middle label">{escape(x.label)}</text>'
        f'<text transform="translate(11 {(_TOP + floor) / 2}) rotate(-90)" class="middle label">'
        f"{escape(y.label)}</text>"
    )
    return "".join(parts)


def _shapes(series: Series, across: Scale, up: Scale) -> Iterator[str]:
    places = [(across(x), up(y)) for x, y in series.points]
    colour = series.colour % COLOURS
    if series.line and len(places) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dashed = ' stroke-dasharray="5 4"' if series.dashed else ""
        yield f'<path d="M{path}" class="line stroke{colour}"{dashed}/>'
    if series.dots or len(places) == 1:
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="fill{colour}"/>'


def _side_by_side(marks: Sequence[Mark], across: Scale) -> list[float]:
    """Returns the marks' coordinates; those of one x are moved apart so that none is covered."""
    together: dict[int, list[int]] = {}
    for place, mark in enumerate(marks):
        together.setdefault(round(across(mark.x)), []).append(place)
    coordinates = [across(mark.x) for mark in marks]
    for places in together.values():
        apart = min(_MARK + 2, 90 / len(places))
        for rank, place in enumerate(places):
            coordinates[place] += (rank - (len(places) - 1) / 2) * apart
    return coordinates


def _numbered(mark: Mark, place: int, x: float, y: float, up: Scale) -> str:
    colour = (place - 1) % COLOURS
    bar = ""
    if mark.spread:
        low, high = up(mark.y - mark.spread), up(mark.y + mark.spread)
        bar = f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" class="line stroke{colour}"/>'
    if mark.is_teacher:
        shape = f'<rect x="{x - 9:.1f}" y="{y - 9:.1f}" width="18" height="18" rx="2"'
    else:
        shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9"'
    return (
        f'<g>{bar}{shape} class="mark fill{colour}"/><text x="{x:.1f}" y="{y + 4:.1f}" '
        f'class="middle digit">{place}</text><title>{escape(mark.name)}</title></g>'
    )


def _joined(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """Joins series into a table of one row for each x and one column for each series."""
    by_x: dict[float, dict[int, float]] = {}
    for place, line in enumerate(series):
        for x, y in line.points:
            by_x.setdefault(x, {})[place] = y
    columns = range(len(series))
    return [
        (f"{x:g}", *(f"{by_x[x][column]:.4g}" if column in by_x[x] else "" for column in columns))
        for x in sorted(by_x)
    ]


def _kind(series: Series) -> str:
    if not series.line:
        return "dot"
    return "dash" if series.dashed else "line"


def _svg(description: str, content: str, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(description)}">'
        f"{content}</svg>"
    )
