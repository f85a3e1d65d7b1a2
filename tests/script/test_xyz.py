"""X/Y/Z plot: the axes, the values that they refuse before anything runs, and cells that do not affect each other."""

from __future__ import annotations

import pytest

from tests.script.extension import DEEP, SCRIPTS, importable, recording, reload_ui
from todo_lib import __version__

LABELS = ["Enabled", "Factor", "Max depth", "Deeper factor", "Start", "End", "Passes", "Hires factor", "Moving grid"]
PAPER = [True, 2, 1]
AS_DICTIONARY = [{"factor": 2, "max_depth": 1}]


@pytest.fixture
def plot(host, run, watch):
    """Plot a job with these ToDo arguments (list or dictionary). Returns the calls, texts and comments by cell."""

    def plot(args, *axes, **fields):
        p = run.prepare("txt2img", {}, **{"width": 64, "height": 64, "steps": 2, **fields})
        p.script_args = list(host.Api.script_args("txt2img", {"ToDo": {"args": args}}, ""))
        p.script_args[0] = 1 + [script.title() for script in p.scripts.selectable_scripts].index("X/Y/Z plot")
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


@pytest.fixture
def loaded_anew(host):
    """Loads these scripts anew. Returns the labels of the axes of each plot among them."""

    def load(*paths):
        with importable(host):
            host.scripts.load_scripts(list(map(str, paths)))
            plots = [data.module for data in host.scripts.scripts_data if hasattr(data.module, "axis_options")]
            return [[option.label for option in plot.axis_options] for plot in plots]

    yield load
    reload_ui(host)


def test_the_axes_are_there_before_the_page_is_made(loaded_anew):
    """With --nowebui the host asks for the list of axes before its callback `before_ui`."""
    (labels,) = loaded_anew(*SCRIPTS)
    assert {f"[ToDo] {name}" for name in LABELS} <= set(labels)


def test_a_plot_that_is_loaded_later(host, loaded_anew):
    plot = next(path for path in SCRIPTS if path.name == "xyz_grid.py")
    loaded_anew(*(path for path in SCRIPTS if path != plot), plot)
    host.script_callbacks.before_ui_callback()
    (module,) = [data.module for data in host.scripts.scripts_data if hasattr(data.module, "axis_options")]
    labels = [option.label for option in module.axis_options if "ToDo" in option.label]
    assert sorted(labels) == sorted(f"[ToDo] {name}" for name in LABELS)


def test_a_module_of_another_name(tmp_path, loaded_anew):
    plot = next(path for path in SCRIPTS if path.name == "xyz_grid.py")
    other = tmp_path / "scripts" / "plots.py"
    other.parent.mkdir()
    other.write_text(plot.read_text(encoding="utf-8"), encoding="utf-8")
    (labels,) = loaded_anew(*(other if path == plot else path for path in SCRIPTS))
    assert {f"[ToDo] {name}" for name in LABELS} <= set(labels)


def test_without_a_plot_there_are_no_axes(host, loaded_anew):
    """It may be switched off where it is an extension of its own."""
    assert loaded_anew(*(path for path in SCRIPTS if path.name != "xyz_grid.py")) == []
    host.script_callbacks.before_ui_callback()
    assert host.errors.reported == []


def test_choices(host):
    choices = {name: option(host, name).choices for name in LABELS}
    assert {name: list(get()) for name, get in choices.items() if get} == {
        "Enabled": ["False", "True"],
        "Moving grid": ["False", "True"],
        "Passes": ["both", "first", "hires"],
    }


VERSION = f", ToDo version: {__version__}"
D, T = (64, 16), (16, 16)  # dense; factor 2 at depth 1


@pytest.mark.parametrize("args", [PAPER, AS_DICTIONARY], ids=["list", "dictionary"])
@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("Enabled", "True, False", [[T, T], [D, D]]),
        ("Factor", "1, 2, 4, 1.5, 0", [[D, D], [T, T], [(4, 16)] * 2, [(25, 16)] * 2, [D, D]]),
        ("Max depth", "1, 2", [[T, T], [T, T]]),
        ("Deeper factor", "1, 4, 0", [[T, T]] * 3),
        ("Start", "0, 0.5, 1", [[T, T], [D, T], [D, D]]),
        ("End", "0, 0.5, 1", [[D, D], [T, D], [T, T]]),
        ("Passes", "both, first, hires", [[T, T], [T, T], [T, T]]),
        ("Hires factor", "0, 3", [[T, T], [T, T]]),
        ("Moving grid", "False, True", [[T, T], [T, T]]),
    ],
)
def test_axes(plot, args, name, values, expected):
    assert keys(plot(args, (f"[ToDo] {name}", values))) == expected


@pytest.mark.parametrize("args", [[False, 4], [None, 4], [{"enabled": False, "factor": 4}], [{"factor": 4}]], ids=str)
def test_enabled_alone_switches_on(plot, args):
    assert keys(plot(args, ("[ToDo] Enabled", "False, True"))) == [[D, D], [(4, 4), (4, 4)]]


def test_passes_axis(plot):
    cells = plot(PAPER, ("[ToDo] Passes", "first, hires"), enable_hr=True, width=32, height=32, steps=1)
    assert keys(cells) == [[(4, 4), (64, 16)], [(16, 4), (16, 16)]]


def test_hires_factor_axis(plot):
    cells = plot(PAPER, ("[ToDo] Hires factor", "0, 4"), enable_hr=True, width=32, height=32, steps=1)
    assert keys(cells) == [[(4, 4), (16, 16)], [(4, 4), (4, 16)]]


@pytest.mark.parametrize("args", [PAPER, AS_DICTIONARY], ids=["list", "dictionary"])
def test_axes_together(plot, args):
    cells = plot(args, ("[ToDo] Max depth", "1, 2"), ("[ToDo] Deeper factor", "2, 4"), ("Steps", "1, 2"))
    expected = [T, T, (16, 4), (16, 1)]
    assert keys(cells) == [[call] * steps for call in expected for steps in (1, 2)]


def written(**changed):
    """ToDo's part of a cell's infotext: key without "ToDo " -> value."""
    return ", ".join(f"ToDo {key.replace('_', ' ')}: {value}" for key, value in changed.items()) + VERSION


def test_cells_do_not_leak_infotext(plot):
    """All cells share one dictionary of infotext parameters."""
    cells = plot(PAPER, ("[ToDo] Max depth", "2, 1"), ("[ToDo] End", "0.5, 1"))
    assert texts(cells) == [
        written(downsample_factor=2, end=0.5),
        written(downsample_factor=2),
        written(downsample_factor=2, depths=1, end=0.5),
        written(downsample_factor=2, depths=1),
    ]


def test_cells_that_are_switched_off_say_nothing(plot):
    cells = plot([False, 2], ("[ToDo] Enabled", "True, False, True"))
    assert texts(cells) == [written(downsample_factor=2), "", written(downsample_factor=2)]


def test_what_is_shown_is_of_the_first_cell(host, plot):
    """A later cell does not change the text under the plot."""
    plot(PAPER, ("[ToDo] Factor", "4, 2"), enable_hr=True, width=32, height=32, steps=1)
    (shown,) = host.xyz.shown[-1].comments.splitlines()
    assert "4x4 tokens, keys from 1x1" in shown and "8x8 tokens, keys from 2x2" in shown
    assert "4x4 tokens, keys from 2x2" not in shown


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("Enabled", "True, yes", ["enabled", "'yes'", "true or false"]),
        ("Factor", "2, 9", ["factor", "9", "1 to 8"]),
        ("Factor", "0.5", ["factor", "0.5", "0, or", "1 to 8"]),
        ("Max depth", "1, 5", ["max_depth", "5", "1 to 4"]),
        ("Deeper factor", "0.5", ["deeper_factor", "0.5", "1 to 8"]),
        ("Start", "0, -0.1", ["start", "-0.1", "0 to 1"]),
        ("End", "1, 1.5", ["end", "1.5", "0 to 1"]),
        ("Passes", "both, second", ["passes", "'second'", "both", "first", "hires"]),
        ("Hires factor", "9", ["hires_factor", "9", "1 to 8"]),
        ("Moving grid", "maybe", ["moving", "'maybe'", "true or false"]),
    ],
)
def test_bad_values_are_refused_before_anything_runs(host, run, name, values, words):
    p = run.prepare("txt2img", {"enabled": True})
    with recording(*run.models) as calls, pytest.raises(Exception, match="ToDo") as error:
        host.xyz.plot(p, ("Steps", "1, 2"), (f"[ToDo] {name}", values))
    for word in words:
        assert word in str(error.value)
    assert calls == []


def hints(result):
    """The lines under an image, other than the one that says what was done."""
    return [line for line in result.comments.splitlines() if "[ToDo]" in line]


def test_a_cell_whose_values_do_not_go_together(plot, swallowed):
    """Each value is allowed, the two together are not. That cell stays empty, and the text under the plot says why."""
    cells = plot(PAPER, ("[ToDo] Start", "0, 0.5"), ("[ToDo] End", "0.25, 1"), steps=1)
    assert [len(result.images) for _, _, result in cells] == [1, 1, 0, 1]
    assert swallowed() == []
    assert texts(cells)[3] == written(downsample_factor=2, depths=1, start=0.5)
    for _, _, result in cells[:2]:
        (hint,) = hints(result)
        assert hint.startswith("[ToDo] Start, [ToDo] End: cells that are not allowed stay empty (")
        assert "end = 0.25 is not allowed: it must not be below start = 0.5" in hint


def test_an_interrupt_while_a_refused_cell_loads_a_checkpoint_ends_the_plot(host, plot, monkeypatch):
    load = host.sd_models.load

    def interrupt(*args):
        host.shared.state.interrupted = True
        return load(*args)

    monkeypatch.setattr(host.sd_models, "load", interrupt)
    plot([True, 2, 1, 0.5], ("[ToDo] End", "0.25, 1"), steps=1)
    assert host.shared.state.interrupted


def test_a_slider_that_does_not_go_with_an_axis(plot):
    cells = plot([True, 2, 1, 0, 0.25], ("[ToDo] Start", "0, 0.5"), steps=1)
    assert [len(result.images) for _, _, result in cells] == [1, 0]
    (hint,) = hints(cells[0][2])
    assert hint.startswith("[ToDo] Start: cells") and "0.25" in hint


@pytest.mark.parametrize("args", [[False, 2, 1, 0.6, 0.4], [None], [{"enabled": False}]], ids=str)
def test_axes_while_todo_is_off(plot, args):
    """The axes change nothing, and the text under the plot says why."""
    cells = plot(args, ("[ToDo] Factor", "2, 4"), ("[ToDo] Start", "0, 0.5"))
    assert keys(cells) == [[D, D]] * 4
    assert texts(cells) == [""] * 4
    for _, _, result in cells:
        assert result.comments.splitlines() == ["[ToDo] Factor, [ToDo] Start: no effect while ToDo is off"]


@pytest.mark.parametrize(
    ("args", "axes"),
    [
        ([False, 2], [("[ToDo] Factor", "2, 4"), ("[ToDo] Enabled", "False, True")]),
        (PAPER, [("[ToDo] Factor", "2, 4")]),
        (PAPER, [("[ToDo] Start", "0, 0.5"), ("[ToDo] End", "0.5, 1")]),
        ([True, 2, 1, 0.6, 0.7], [("[ToDo] Start", "0, 0.5"), ("[ToDo] End", "0.5, 1")]),
    ],
)
def test_plots_without_a_hint(plot, args, axes):
    for _, _, result in plot(args, *axes, steps=1):
        assert hints(result) == []


def test_a_plot_of_wrong_arguments(plot):
    cells = plot([True, 2, 1, "a", "b"], ("[ToDo] Factor", "2, 4"), steps=1)
    assert [result.images for _, _, result in cells] == [[], []]
    assert all("start = 'a'" in result.comments for _, _, result in cells)


def test_ranges_as_the_host_counts_them(plot):
    """The host's third multiple of 0.1 is 0.30000000000000004. Users asked for 0.3, and read 0.3 under the image."""
    cells = plot(PAPER, ("[ToDo] Start", "0.1-0.3 (+0.1)"), steps=10, width=32, height=32)
    assert texts(cells)[:3] == [written(downsample_factor=2, depths=1, start=start) for start in (0.1, 0.2, 0.3)]
    assert [[keys == (4, 4) for keys in calls].index(True) for calls in keys(cells)][:3] == [1, 2, 3]


def test_img2img_has_its_own_runner(host, run):
    p = run.prepare("img2img", {"enabled": True})
    with recording(*run.models) as calls:
        host.xyz.plot(p, ("[ToDo] End", "0.5, 1"))
    assert [call.down for call in calls] == [True, True, False, False] + [True] * 4
