"""Small pictures as inline SVG: histograms, curves, intervals. Colours are the page's own (CSS)."""

import html
from collections.abc import Sequence

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 26  # room for the axes' numbers


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def short(value: float) -> str:
    """A number as an axis shows it: 12k, 0.25, 1.5e-06."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.1e}"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def svg(body: list[str], title: str, height: int = HEIGHT, width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def text(x: float, y: float, words: object, anchor: str = "middle", kind: str = "axis") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def bins(values: Sequence[float], low: float, high: float, count: int) -> list[int]:
    """How many values fall into each of `count` equal bins; what lies outside goes to the ends."""
    found = [0] * count
    for value in values:
        place = int((value - low) / (high - low) * count)
        found[max(0, min(count - 1, place))] += 1
    return found


def scale(low: float, high: float) -> list[str]:
    """Three lines across, with the numbers from `low` to `high` at their left."""
    body, floor = [], HEIGHT - BOTTOM
    for part in (0, 0.5, 1):
        y = floor - part * (floor - TOP)
        body.append(line(LEFT, y, WIDTH - RIGHT, y))
        body.append(text(LEFT - 5, y + 3.5, short(low + part * (high - low)), "end"))
    return body


def bars(groups: dict[str, Sequence[float]], labels: Sequence[str], title: str) -> str:
    """Bars side by side for each label, a colour for each group; few labels are written out."""
    most = max(max(values) for values in groups.values()) or 1
    inner, floor = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    step = inner / len(labels)
    body = scale(0, most)
    for group, (name, values) in enumerate(groups.items()):
        width = step * 0.82 / len(groups)
        for place, value in enumerate(values):
            tall = value / most * (floor - TOP)
            x = LEFT + place * step + step * 0.09 + group * width
            body.append(
                f'<rect x="{x:.1f}" y="{floor - tall:.1f}" width="{max(width - 0.6, 0.8):.1f}" '
                f'height="{tall:.1f}" rx="1.5" class="fill{group}"><title>{escape(name)}, '
                f"{escape(labels[place])}: {value:,}</title></rect>"
            )
    every = -(-len(labels) // 8)  # no more than eight labels fit
    for place in range(0, len(labels), every):
        body.append(text(LEFT + (place + 0.5) * step, HEIGHT - 9, labels[place]))
    return svg(body, title)


def curve(points: Sequence[tuple[float, float]], title: str) -> str:
    """One line over steps."""
    xs, ys = zip(*points)
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1
    low, high = low - margin, high + margin
    across, floor = max(xs) - min(xs) or 1, HEIGHT - BOTTOM
    body, path = scale(low, high), []
    for x, y in points:
        right = LEFT + (x - min(xs)) / across * (WIDTH - LEFT - RIGHT)
        path.append(f"{right:.1f},{floor - (y - low) / (high - low) * (floor - TOP):.1f}")
    body.append(f'<polyline points="{" ".join(path)}" class="curve"/>')
    body += [text(LEFT, HEIGHT - 9, short(min(xs)), "start"), text(LEFT + 150, HEIGHT - 9, "step")]
    body.append(text(WIDTH - RIGHT, HEIGHT - 9, short(max(xs)), "end"))
    return svg(body, title)


def dots(rows: Sequence[tuple[str, float, float | None, float | None]], title: str) -> str:
    """A dot and its interval for each (name, value, low, high), all between 0 and the largest."""
    largest = max(high or value for _, value, _, high in rows)
    # shares end at 1, ratings at 10, mean lengths where they end
    scale = next((end for end in (1.0, 10.0) if largest <= end), largest)
    unit = "%" if scale == 1 else ""
    left, step = 92, 26
    height = TOP + step * len(rows) + BOTTOM
    inner, floor = WIDTH - left - 52, TOP + step * len(rows)
    body = []
    for part in (0, 0.25, 0.5, 0.75, 1):
        x = left + part * inner
        body.append(line(x, TOP - 4, x, floor))
        shown = part * (100 if scale == 1 else scale)
        body.append(text(x, height - 9, f"{short(shown)}{unit}"))
    for place, (name, value, low, high) in enumerate(rows):
        y = TOP + step * (place + 0.5)
        x = left + value / scale * inner
        if low is not None:
            ends = (left + low / scale * inner, left + high / scale * inner)
            body.append(line(ends[0], y, ends[1], y, f"whisker stroke{place % 8}"))
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="fill{place % 8}"/>')
        body.append(
            text(left - 10, y + 4, name if len(name) < 15 else f"{name[:13]}…", "end", "name")
        )
        shown = f"{value * 100:.1f}" if scale == 1 else f"{value:.2f}"
        body.append(text(WIDTH - 4, y + 4, shown, "end", "value"))
    return svg(body, title, height)
