"""The charts of the page: Vega-Lite specifications, which vl-convert draws as SVG.

Colours are CSS variables of the page, so one drawing serves light and dark mode. Each chart is
drawn twice, wide and narrow, because a wide one is unreadable when it shrinks to a phone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import vl_convert

from monocloud_async.report.figures import Figures
from monocloud_async.sanitize import format_rate

Spec = dict[str, Any]

_WIDE, _NARROW = 760, 300
_LABEL = 75  # width that a label needs, with the space around it
_VERSION: Final = "5.20"  # of Vega-Lite, fixed so that an upgrade does not change the drawing
_CONFIG: Final = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--text)",
        "titleColor": "var(--text)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
    },
}


class Chart(NamedTuple):
    """One chart, with a summary and a table for people who cannot see it.

    Attributes:
        title: the heading.
        summary: what the chart shows, in one sentence.
        wide, narrow: the drawings, as SVG.
        header, rows: the figures as a table.
    """

    title: str
    summary: str
    wide: str
    narrow: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def charts(figures: Figures) -> list[Chart]:
    """Return the charts of a run, without those that would be empty."""
    drawn = [_timeline(figures)] if figures.seconds else []
    if figures.times:
        drawn.append(_times(figures))
    if figures.attempts:
        drawn.append(_attempts(figures))
    return drawn


def _chart(
    title: str,
    summary: str,
    spec: Callable[[int], Spec],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> Chart:
    wide, narrow = (_draw(spec(width), width) for width in (_WIDE, _NARROW))
    return Chart(title, summary, wide, narrow, header, rows)


def _draw(spec: Spec, width: int) -> str:
    whole = {"width": width, "height": 200, "background": None, "config": _CONFIG, **spec}
    svg: str = vl_convert.vegalite_to_svg(whole, vl_version=_VERSION)
    return svg[svg.index("<svg") :]


def _timeline(figures: Figures) -> Chart:
    unit, name = (60.0, "minutes") if figures.seconds > 300 else (1.0, "seconds")  # noqa: PLR2004  seconds
    axis = {"type": "quantitative", "title": f"{name} of work", "axis": {"grid": False}}
    points = [
        {"x": point.seconds / unit, "done": point.done, "other": point.other}
        for point in figures.timeline
    ]
    halts = [
        {"x": halt.start / unit, "x2": halt.end / unit, "what": halt.what} for halt in figures.halts
    ]
    borders = [{"x": border / unit} for border in figures.borders]

    def line(member: str, colour: str) -> Spec:
        return {
            "data": {"values": points},
            "mark": {"type": "line", "interpolate": "step-after", "color": colour},
            "encoding": {
                "x": {"field": "x", **axis},
                "y": {"field": member, "type": "quantitative", "title": "users a second"},
            },
        }

    def band(what: str, colour: str) -> Spec:
        return {
            "data": {"values": [halt for halt in halts if halt["what"] == what]},
            "mark": {"type": "rect", "color": colour, "opacity": 0.3},
            "encoding": {"x": {"field": "x", **axis}, "x2": {"field": "x2"}},
        }

    def spec(width: int) -> Spec:
        axis["axis"] = {"grid": False, "tickCount": width // 80}
        layers = [
            band("paused", "var(--paused)"),
            band("outage", "var(--failed)"),
            {
                "data": {"values": borders},
                "mark": {"type": "rule", "color": "var(--text)", "strokeDash": [4, 3]},
                "encoding": {"x": {"field": "x", **axis}},
            },
            line("done", "var(--done)"),
            line("other", "var(--failed)"),
        ]
        return {"layer": layers}

    def seconds(what: str) -> float:
        return sum(halt.seconds for halt in figures.halts if halt.what == what)

    peak = max(point.done for point in figures.timeline)
    summary = (
        f"{format_rate(figures.rate)} users a second on average, {format_rate(peak)} at most;"
        f" {seconds('paused'):,.0f} s of pauses and {seconds('outage'):,.0f} s of outage."
    )
    done = f"{figures.done_status.capitalize()} a second"
    header = ("Seconds of work", done, "Others a second", "Meanwhile")
    return _chart("Users a second", summary, spec, header, _by_time(figures))


def _by_time(figures: Figures) -> list[tuple[str, ...]]:
    """Return the timeline as a table of at most twenty rows."""
    every = -(-len(figures.timeline) // 20)
    rows: list[tuple[str, ...]] = []
    for start in range(0, len(figures.timeline), every):
        part = figures.timeline[start : start + every]
        end = part[-1].seconds + figures.step
        about = {m.what for m in figures.halts if m.start < end and m.end > part[0].seconds}
        rows.append(
            (
                f"{part[0].seconds:,.6g} to {end:,.6g}",
                f"{sum(point.done for point in part) / len(part):,.1f}",
                f"{sum(point.other for point in part) / len(part):,.1f}",
                ", ".join(sorted(about)),
            )
        )
    return rows


def _bars(values: list[Spec], title: str, colour: str) -> Callable[[int], Spec]:
    def spec(width: int) -> Spec:
        return {
            "data": {"values": values},
            "mark": {"type": "bar", "color": colour},
            "encoding": {
                "x": {
                    "field": "label",
                    "type": "ordinal",
                    "sort": None,
                    "title": title,
                    # vl-convert leaves no room for rotated labels.
                    "axis": {"labelAngle": -90, "titlePadding": 20}
                    if len(values) * _LABEL > width
                    else {"labelAngle": 0},
                },
                "y": {"field": "users", "type": "quantitative", "title": "users"},
            },
        }

    return spec


def _times(figures: Figures) -> Chart:
    labels = [f"{ms} ms" if ms < 1000 else f"{ms // 1000} s" for ms, _ in figures.times]  # noqa: PLR2004  one second
    counts = [count for _, count in figures.times]
    found = figures.percentiles
    return _chart(
        f"Time until a user was {figures.done_status}",
        f"Half within {found[50]:,} ms, 90 % within {found[90]:,} ms, 99 % within {found[99]:,} ms,"
        f" the slowest after {found[100]:,} ms, including waits for the rate limit.",
        _bars(
            [{"label": f"≤ {a}", "users": b} for a, b in zip(labels, counts, strict=True)],
            "from the start of the call to its end",
            "var(--done)",
        ),
        ("Within", "Users"),
        [(f"{label}", f"{count:,}") for label, count in zip(labels, counts, strict=True)],
    )


def _attempts(figures: Figures) -> Chart:
    labels = [str(n) if n < 6 else "6 or more" for n, _ in figures.attempts]  # noqa: PLR2004  as the query
    counts = [count for _, count in figures.attempts]
    retried = sum(count for (n, _), count in zip(figures.attempts, counts, strict=True) if n > 1)
    return _chart(
        f"Requests until a user was {figures.done_status}",
        f"{retried:,} of {sum(counts):,} {figures.done_status} users took more than one;"
        " requests that were answered 429 are not counted.",
        _bars(
            [{"label": a, "users": b} for a, b in zip(labels, counts, strict=True)],
            "requests",
            "var(--again)",
        ),
        ("Requests", "Users"),
        [(label, f"{count:,}") for label, count in zip(labels, counts, strict=True)],
    )
