"""X/Y/Z plot: the axes, what they refuse before anything runs, and that cells do not leak into each other."""

from __future__ import annotations

import pytest

from tests.script.extension import DEEP, recording

LABELS = ["Enabled", "Factor", "Max depth", "Deeper factor", "Start", "End", "Passes", "Auto"]


@pytest.fixture
def plot(host, run, watch):
    """Plots a job with these ToDo arguments (a list or dictionary); returns the calls, texts and comments by cell."""

    def plot(args, *axes, **fields):
        p = run.prepare("txt2img", {}, **{"width": 64, "height": 64, "steps": 2, **fields})
        p.script_args = list(host.Api.script_args("txt2img", {"ToDo": {"args": args}}, ""))
        before = list(p.script_args)
        begins = []

        def note(moment, subject):
            if moment == "process":
                begins.append(len(calls))

        with recording(*run.models) as calls, watch(note):
            results = host.xyz.plot(p, *axes)
        assert list(p.script_args) == before, "the plotted job itself was changed"
        cells = []
        for result, begin, end in zip(results, begins, [*begins[1:], len(calls)], strict=True):
            text = result.info if result else ""
            cells.append(([(call.top, call.keys[DEEP]) for call in calls[begin:end]], todo_part(text), result))
        return cells

    return plot


def todo_part(infotext):
    return infotext[infotext.index("ToDo") :] if "ToDo" in infotext else ""


def keys(cells):
    return [calls for calls, _, _ in cells]


def texts(cells):
    return [text for _, text, _ in cells]


def option(host, name):
    return host.xyz.option(f"[ToDo] {name}")


def test_labels(host):
    found = [option.label for option in host.xyz.axis_options if "ToDo" in option.label]
    assert sorted(found) == sorted(f"[ToDo] {name}" for name in LABELS)


def test_choices(host):
    choices = {name: option(host, name).choices for name in LABELS}
    assert {name: list(get()) for name, get in choices.items() if get} == {
        "Enabled": ["False", "True"],
        "Auto": ["False", "True"],
        "Passes": ["both", "first", "hires"],
    }


D, T = (64, 16), (16, 16)  # dense; factor 2 at depth 1


@pytest.mark.parametrize("args", [[True], [{"enabled": True}]], ids=["list", "dictionary"])
@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("Enabled", "True, False", [[T, T], [D, D]]),
        ("Factor", "1, 2, 4, 1.5", [[D, D], [T, T], [(4, 16)] * 2, [(25, 16)] * 2]),
        ("Max depth", "1, 2", [[T, T], [(16, 4)] * 2]),
        ("Deeper factor", "1, 4", [[T, T], [T, T]]),
        ("Start", "0, 0.5, 1", [[T, T], [D, T], [D, D]]),
        ("End", "0, 0.5, 1", [[D, D], [T, D], [T, T]]),
        ("Passes", "both, first, hires", [[T, T], [T, T], [T, T]]),
        ("Auto", "False, True", [[T, T], [D, D]]),
    ],
)
def test_axes(plot, args, name, values, expected):
    assert keys(plot(args, (f"[ToDo] {name}", values))) == expected


@pytest.mark.parametrize("args", [[], [False, 4], [{}], [{"factor": 4}]], ids=str)
def test_enabled_alone_switches_on(plot, args):
    down = (4, 16) if "4" in str(args) else T
    assert keys(plot(args, ("[ToDo] Enabled", "False, True"))) == [[D, D], [down, down]]


def test_passes_axis(plot):
    cells = plot([True], ("[ToDo] Passes", "first, hires"), enable_hr=True, width=32, height=32, steps=1)
    assert keys(cells) == [[(4, 4), (64, 16)], [(16, 4), (16, 16)]]


@pytest.mark.parametrize("args", [[True], [{"enabled": True}]], ids=["list", "dictionary"])
def test_axes_together(plot, args):
    cells = plot(args, ("[ToDo] Max depth", "1, 2"), ("[ToDo] Deeper factor", "2, 4"), ("Steps", "1, 2"))
    expected = [T, T, (16, 4), (16, 1)]
    assert keys(cells) == [[call] * steps for call in expected for steps in (1, 2)]


def test_cells_do_not_leak_infotext(plot):
    """All cells share one dictionary of infotext parameters."""
    cells = plot([True], ("[ToDo] Max depth", "2, 1"), ("[ToDo] End", "0.5, 1"))
    assert texts(cells) == [
        "ToDo factor: 2, ToDo max depth: 2, ToDo end: 0.5, ToDo deeper factor: 2",
        "ToDo factor: 2, ToDo max depth: 2, ToDo deeper factor: 2",
        "ToDo factor: 2, ToDo max depth: 1, ToDo end: 0.5",
        "ToDo factor: 2, ToDo max depth: 1",
    ]


def test_cells_that_are_switched_off_say_nothing(plot):
    cells = plot([], ("[ToDo] Enabled", "True, False, True"))
    assert texts(cells) == ["ToDo factor: 2, ToDo max depth: 1", "", "ToDo factor: 2, ToDo max depth: 1"]
    assert ["ToDo" in result.comments for _, _, result in cells] == [True, False, True]


def test_cells_do_not_leak_comments(plot):
    """One line under each picture: what was done for this one."""
    cells = plot([True], ("[ToDo] Factor", "1, 2, 4"))
    comments = [result.comments.splitlines() for _, _, result in cells]
    assert all(len(lines) == 1 and lines[0].startswith("ToDo: ") for lines in comments)
    assert "factor is 1" in comments[0][0]
    assert "8x8 tokens, keys from 4x4" in comments[1][0]
    assert "8x8 tokens, keys from 2x2" in comments[2][0]


def test_what_each_cell_wrote_stays_its_own(plot):
    """A later cell does not change what an earlier one has given out."""
    cells = plot([True], ("[ToDo] Factor", "4, 2"), enable_hr=True, width=32, height=32, steps=1)
    first, second = (result.comments for _, _, result in cells)
    assert "4x4 tokens, keys from 1x1" in first and "8x8 tokens, keys from 2x2" in first
    assert "4x4 tokens, keys from 2x2" in second and "8x8 tokens, keys from 4x4" in second


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("Enabled", "True, yes", ["enabled", "'yes'", "true or false"]),
        ("Factor", "2, 9", ["factor", "9", "1 to 8"]),
        ("Factor", "0.5", ["factor", "0.5", "1 to 8"]),
        ("Max depth", "1, 5", ["max_depth", "5", "1 to 4"]),
        ("Deeper factor", "0", ["deeper_factor", "0", "1 to 8"]),
        ("Start", "0, -0.1", ["start", "-0.1", "0 to 1"]),
        ("End", "1, 1.5", ["end", "1.5", "0 to 1"]),
        ("Passes", "both, second", ["passes", "'second'", "both", "first", "hires"]),
        ("Auto", "maybe", ["auto", "'maybe'", "true or false"]),
    ],
)
def test_bad_values_are_refused_before_anything_runs(host, run, name, values, words):
    p = run.prepare("txt2img", {"enabled": True})
    with recording(*run.models) as calls, pytest.raises(Exception, match="ToDo") as error:
        host.xyz.plot(p, ("Steps", "1, 2"), (f"[ToDo] {name}", values))
    for word in words:
        assert word in str(error.value)
    assert calls == []


def test_a_cell_whose_values_do_not_go_together(plot, swallowed):
    """Each is allowed, the two are not: that cell stays empty, and the others are right."""
    cells = plot([True], ("[ToDo] Start", "0, 0.5"), ("[ToDo] End", "0.2, 1"), steps=1)
    assert [result is None for _, _, result in cells] == [False, False, True, False]
    ((message, error),) = swallowed()
    assert message == "generating image for xyz plot"
    assert "end" in str(error) and "0.2" in str(error) and "0.5" in str(error)
    assert texts(cells)[3] == "ToDo factor: 2, ToDo max depth: 1, ToDo start: 0.5"


def test_ranges_as_the_host_counts_them(plot):
    """Its third 0.1 is 0.30000000000000004; what people asked for, and read under the picture, is 0.3."""
    cells = plot([True], ("[ToDo] Start", "0.1-0.3 (+0.1)"), steps=10, width=32, height=32)
    assert texts(cells)[:3] == [f"ToDo factor: 2, ToDo max depth: 1, ToDo start: {start}" for start in (0.1, 0.2, 0.3)]
    assert [[keys == (4, 4) for keys in calls].index(True) for calls in keys(cells)][:3] == [1, 2, 3]


def test_img2img_has_its_own_runner(host, run):
    p = run.prepare("img2img", {"enabled": True})
    with recording(*run.models) as calls:
        host.xyz.plot(p, ("[ToDo] End", "0.5, 1"))
    assert [call.down for call in calls] == [True, True, False, False] + [True] * 4
