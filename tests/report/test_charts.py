"""The charts of a run: which there are, what they say, and their figures as tables."""

import re
from typing import Any

import pytest

from monocloud_async.report.charts import Chart, charts
from monocloud_async.report.figures import Figures, Halt, Point, Run


def figures(seconds: float = 10.0, **members: Any) -> Figures:
    run = Run(0.0, seconds, "finished", "process 1", seconds, 0, 0, 0, 0.0)
    options: dict[str, Any] = {
        "journal": "j",
        "tenant": "https://acme",
        "done_status": "enabled",
        "source": "users.csv",
        "form": "csv",
        "column": None,
        "created": 0.0,
        "outcomes": {"enabled": 90, "failed": 10},
        "runs": [run],
        "timeline": [Point(0.0, 5.0, 1.0), Point(1.0, 13.0, 0.0)],
        **members,
    }
    return Figures(**options)


def chart(title: str, of: Figures) -> Chart:
    (found,) = [each for each in charts(of) if each.title == title]
    return found


TIMES: dict[str, Any] = {
    "times": [(500, 8), (1000, 1), (2000, 1)],
    "percentiles": {50: 20, 90: 480, 99: 900, 100: 1900},
}


def test_only_charts_with_something_to_show_are_drawn() -> None:
    assert charts(figures(0.0, runs=[])) == []
    titles = [each.title for each in charts(figures(**TIMES, attempts=[(1, 9), (2, 1)]))]
    assert titles == [
        "Users a second",
        "Time until a user was enabled",
        "Requests until a user was enabled",
    ]


@pytest.mark.parametrize("done", ["enabled", "disabled"])
def test_charts_are_of_the_operation_of_the_journal(done: str) -> None:
    drawn = charts(figures(done_status=done, **TIMES, attempts=[(1, 9)]))
    assert drawn[0].header[1] == f"{done.capitalize()} a second"
    assert [each.title.rpartition(" ")[2] for each in drawn[1:]] == [done, done]
    assert f"0 of 9 {done} users took more than one" in drawn[2].summary


def test_the_timeline_is_summed_up_and_tells_pauses_from_outages() -> None:
    halts = [
        Halt(0.0, 0.4, "paused", 0.4),
        Halt(1.2, 3.2, "paused", 1.9),
        Halt(1.0, 6.0, "outage", 5.0),
    ]
    drawn = chart("Users a second", figures(halts=halts))
    assert drawn.summary == (
        "10 users a second on average, 13 at most; 2 s of pauses and 5 s of outage."
    )
    assert drawn.rows == [
        ("0 to 1", "5.0", "1.0", "paused"),
        ("1 to 2", "13.0", "0.0", "outage, paused"),
    ]


def test_a_slow_run_has_a_speed_and_a_peak() -> None:
    points = [Point(0.0, 0.4), Point(1.0, 0.2)]
    drawn = chart("Users a second", figures(400.0, timeline=points))
    assert drawn.summary.startswith("0.25 users a second on average, 0.4 at most;")


@pytest.mark.parametrize(("seconds", "unit"), [(300.0, "seconds"), (301.0, "minutes")])
def test_a_long_run_is_drawn_in_minutes(seconds: float, unit: str) -> None:
    drawn = chart("Users a second", figures(seconds, borders=[200.0]))
    assert f"{unit} of work" in drawn.wide
    assert f"{unit} of work" in drawn.narrow


def test_the_table_of_a_timeline_has_at_most_twenty_rows_that_cover_all_of_it() -> None:
    points = [Point(float(second), float(second), 1.0) for second in range(41)]
    drawn = chart("Users a second", figures(41.0, timeline=points))
    assert len(drawn.rows) == 14
    assert drawn.rows[0] == ("0 to 3", "1.0", "1.0", "")
    assert drawn.rows[-1] == ("39 to 41", "39.5", "1.0", "")


def test_times_are_bars_in_milliseconds_and_from_one_second_on_in_seconds() -> None:
    drawn = chart("Time until a user was enabled", figures(**TIMES))
    assert drawn.rows == [("500 ms", "8"), ("1 s", "1"), ("2 s", "1")]
    assert "Half within 20 ms, 90 % within 480 ms, 99 % within 900 ms" in drawn.summary
    assert "the slowest after 1,900 ms" in drawn.summary


def test_requests_of_six_and_more_are_one_bar() -> None:
    attempts = [(1, 1000), (2, 20), (5, 3), (6, 1)]
    drawn = chart("Requests until a user was enabled", figures(attempts=attempts))
    assert drawn.rows == [("1", "1,000"), ("2", "20"), ("5", "3"), ("6 or more", "1")]
    assert drawn.summary.startswith("24 of 1,024 enabled users took more than one;")


def test_colours_are_the_page_s_and_labels_without_room_are_turned() -> None:
    for each in charts(figures(**TIMES, attempts=[(1, 1)])):
        for svg in (each.wide, each.narrow):
            assert svg.startswith("<svg")
            assert "var(--text)" in svg
    many = [(place, 1) for place in range(1, 14)]
    for times, expected in ((TIMES["times"], [1, 1]), (many, [14, 14]), (many[:6], [1, 7])):
        drawn = chart("Time until a user was enabled", figures(**{**TIMES, "times": times}))
        turned = [re.findall(r"rotate\((?:-90|270)", svg) for svg in (drawn.wide, drawn.narrow)]
        assert list(map(len, turned)) == expected  # the title of an axis, and the labels
