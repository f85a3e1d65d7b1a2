"""Infotext: writing it, and reading it back by pasting and through the API."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from tests.script.extension import DEFAULTS, FRESH, NAMES, importable, positional
from todo_lib import __version__

TABS = ["txt2img", "img2img"]
BASE = "a\nSteps: 4, Sampler: Euler, Seed: 1"
FACTOR, VERSION = "ToDo downsample factor", {"ToDo version": __version__}

WRITTEN = [
    ({}, {FACTOR: "auto"}),
    ({"factor": 3.5}, {FACTOR: "3.5"}),
    ({"factor": 2.718281828}, {FACTOR: "2.718281828"}),
    ({"max_depth": 3}, {FACTOR: "auto", "ToDo depths": "3"}),
    ({"max_depth": 1, "deeper_factor": 1.5}, {FACTOR: "auto", "ToDo depths": "1", "ToDo deeper factor": "1.5"}),
    ({"start": 0.25}, {FACTOR: "auto", "ToDo start": "0.25"}),
    ({"end": 0.8}, {FACTOR: "auto", "ToDo end": "0.8"}),
    ({"end": 0}, {FACTOR: "auto", "ToDo end": "0"}),
    ({"passes": "hires"}, {FACTOR: "auto", "ToDo passes": "hires"}),
    ({"factor": 2, "hires_factor": 3}, {FACTOR: "2", "ToDo hires factor": "3"}),
    ({"moving": False}, {FACTOR: "auto", "ToDo moving grid": "False"}),
]


@pytest.mark.parametrize(("settings", "params"), WRITTEN, ids=[str(settings) for settings, _ in WRITTEN])
def test_written(run, settings, params):
    job = run("txt2img", {**FRESH, "enabled": True, **settings}, steps=1)
    assert job.params == {**params, **VERSION}
    assert set(job.result.infotexts) == {job.result.info}


@pytest.mark.parametrize("todo", [{}, {"factor": 3, "max_depth": 2}])
def test_not_written_when_switched_off(run, todo):
    assert run("txt2img", todo, steps=1).params == {}


def test_in_every_image(run):
    job = run.img2img(n_iter=2, batch_size=2, steps=1)
    assert len(job.result.infotexts) == 4
    assert all("ToDo downsample factor: 2, ToDo depths: 1" in text for text in job.result.infotexts)


THEIRS = {"ToDo factor": 5.0, "ToDo factor2": 1.0, "ToDo disable after": 1.0}


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_what_another_extension_wrote_stays(run, watch, enabled, before):
    """sd-webui-token-downsampling writes keys that look like ours. They stay, whichever extension runs first."""

    def write(moment, p):
        if moment == "process":
            p.extra_generation_params.update(THEIRS)

    given = {"extra_generation_params": dict(THEIRS)} if before else {}
    with watch(write if not before else lambda *_: None):
        job = run("txt2img", {**FRESH, "enabled": enabled, "factor": 3}, n_iter=2, steps=1, **given)
    theirs = {key: str(value) for key, value in THEIRS.items()}
    assert job.params == {**theirs, **({FACTOR: "3", **VERSION} if enabled else {})}


def test_switched_off_nothing_of_the_job_is_touched(run):
    p = run.prepare("txt2img", {"enabled": False})
    params, comments = p.extra_generation_params, p.comments
    params["ToDo end"], comments["ToDo: something"] = "from elsewhere", 1
    run.host.processing.process_images(p)
    assert p.extra_generation_params is params and params == {"ToDo end": "from elsewhere"}
    assert p.comments is comments and comments == {"ToDo: something": 1}
    assert not [name for name in vars(p) if "todo" in name]


def test_a_job_that_is_made_again_with_other_settings(run, host):
    """Loops make a job again, with one processing object or with copies of it."""
    p = run.prepare("txt2img", {**FRESH, "enabled": True, "factor": 3, "end": 0.5}, steps=1)
    first = host.processing.process_images(p).info
    script = p.scripts.script("ToDo")

    def again(p, *values):
        args = list(p.script_args)
        args[script.args_from : script.args_from + len(values)] = values
        p.script_args = tuple(args)
        return host.processing.process_images(p).info

    assert "ToDo" not in again(copy.copy(p), False)
    text = again(p, True, 4.0, 2, 0.0, 1.0)
    assert "ToDo downsample factor: 4, ToDo version" in text and "ToDo end" not in text
    assert "ToDo" not in again(p, False)
    assert again(p, True, 3.0, 2, 0.0, 0.5) == first


def test_arguments_that_another_script_changes(run, watch, host):
    """The infotext describes the sampling that took place."""

    def change(moment, p):
        if moment == "process":
            script = p.scripts.script("ToDo")
            args = list(p.script_args)
            args[script.args_from : script.args_from + 2] = True, 4.0
            p.script_args = tuple(args)

    with watch(change):
        assert run("txt2img", FRESH, steps=1).params == {FACTOR: "4", **VERSION}


def test_another_script_switches_it_off(run, watch):
    def change(moment, p):
        if moment == "process":
            args = list(p.script_args)
            args[p.scripts.script("ToDo").args_from] = False
            p.script_args = tuple(args)

    with watch(change):
        job = run.txt2img(steps=1)
    assert job.down == [False] and job.params == {} and job.comments == []


# ---- the hires pass alone, of an image that was made before


@pytest.mark.parametrize(
    ("made_with", "passes", "written"),
    [  # first argument: a text that ToDo wrote, one that it did not write, or none at all
        (f"{BASE}, ToDo downsample factor: 2, ToDo version: 1", "both", None),
        (f"{BASE}, ToDo downsample factor: 2, ToDo version: 1", "hires", None),
        (f"{BASE}, ToDo downsample factor: 2, ToDo version: 1", "first", "first"),
        (BASE, "both", "hires"),
        (BASE, "hires", "hires"),
        (BASE, "first", "off"),
        (None, "hires", None),
        (None, "first", "first"),
    ],
)
def test_an_image_that_is_upscaled_later(run, host, made_with, passes, written):
    """The text makes the same image again when `passes` counts for both passes."""
    p = run.prepare("txt2img", {"enabled": True, "factor": 2, "passes": passes}, enable_hr=True, steps=1)
    p.firstpass_image = torch.zeros(1, 4, 4, 4)
    p.firstpass_image.info = {"parameters": made_with} if made_with else {}
    p.txt2img_upscale = True
    with importable(host):
        info = host.processing.process_images(p).info
    if written == "off":
        assert "ToDo" not in info
    else:
        assert FACTOR in info
        assert host.infotext_utils.parse_generation_parameters(info).get("ToDo passes") == written


# ---- reading back

SETTINGS = [
    {},
    {"factor": 1},
    {"factor": 2.718281828459045, "end": 0.1},
    {"factor": 8, "max_depth": 4, "deeper_factor": 1},
    {"max_depth": 1, "deeper_factor": 3.5, "start": 0.15, "end": 0.85, "passes": "first"},
    {"start": 1, "passes": "hires", "hires_factor": 2.5},
    {"start": 0.3, "end": 0.3},
    {"factor": 0, "max_depth": 3, "moving": False},
]
ROUND_TRIPS = pytest.mark.parametrize("settings", SETTINGS, ids=map(str, SETTINGS))


@pytest.mark.parametrize("tab", TABS)
@ROUND_TRIPS
def test_pasted_in_the_browser(host, run, tab, settings):
    settings = {**FRESH, "enabled": True, **settings}
    text = run(tab, settings, steps=1).result.info
    pasted = host.infotext_utils.paste(tab, text)
    assert pasted == positional(settings)


@pytest.mark.parametrize("tab", TABS)
@ROUND_TRIPS
def test_read_by_the_api(host, run, tab, settings):
    """The API casts to the type of the control's value."""
    settings = {**FRESH, "enabled": True, **settings}
    text = run(tab, settings, steps=1).result.info
    script = host.ui.runners()[tab].script("ToDo")
    args = host.Api.script_args(tab, {}, text)[script.args_from : script.args_to]
    assert list(args) == positional(settings)
    assert [type(value) for value in args] == [type(value) for value in DEFAULTS]


@pytest.mark.parametrize("tab", TABS)
def test_a_text_without_todo_switches_it_off(host, tab):
    """All controls go back to their defaults, whatever their values were before."""
    assert host.infotext_utils.paste(tab, BASE) == DEFAULTS


def pasted(host, params):
    """Names and values of the controls that a paste moves away from their defaults."""
    values = host.infotext_utils.paste("txt2img", f"{BASE}, {params}")
    return {name: value for name, value, default in zip(NAMES, values, DEFAULTS, strict=True) if value != default}


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        ("ToDo downsample factor: 3", {"enabled": True, "factor": 3}),
        ("ToDo downsample factor: 2, ToDo end: 0.5", {"enabled": True, "factor": 2, "end": 0.5}),
        ("ToDo downsample factor: auto, ToDo depths: 3", {"enabled": True, "max_depth": 3}),
        ("ToDo version: 0.2.0", {"enabled": True}),
        ("ToDo depths: 3, ToDo end: 0.5", {"enabled": True, "max_depth": 3, "end": 0.5}),
        ("ToDo disable after: 0.5, ToDo factor2: 2", {}),  # only the other extension's keys
    ],
)
def test_absent_keys_mean_defaults(host, params, changed):
    assert pasted(host, params) == changed


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        # keys as the extension sd-webui-token-downsampling writes them
        ("ToDo factor: 2.0, ToDo max depth: 1, ToDo disable after: 1.0", {"factor": 2, "max_depth": 1}),
        (
            "ToDo factor: 3.5, ToDo max depth: 2, ToDo disable after: 0.6",
            {"factor": 3.5, "deeper_factor": 3.5, "end": 0.6},
        ),
        ("ToDo factor: 2.0, ToDo max depth: 2.0, ToDo disable after: 0.0", {"factor": 2, "deeper_factor": 2, "end": 0}),
        (
            "ToDo factor: 3.0, ToDo factor2: 2.0, ToDo disable after: 0.8",
            {"factor": 3, "deeper_factor": 2, "end": 0.8},
        ),
        ("ToDo factor: 3.0, ToDo factor2: 1.5", {"factor": 3, "deeper_factor": 1.5}),
        ("ToDo factor: 3.0, ToDo factor2: 1.0, ToDo disable after: 1.0", {"factor": 3, "max_depth": 1}),
        ("ToDo factor: 5.0, ToDo factor2: 1", {"factor": 5, "max_depth": 1}),
    ],
)
def test_texts_of_the_other_extension(host, params, changed):
    assert pasted(host, params) == {"enabled": True, "moving": False, **changed}


def test_texts_of_the_other_extension_are_left_to_it_where_it_is_installed(host, monkeypatch):
    option = SimpleNamespace(infotext="ToDo factor")
    monkeypatch.setitem(host.shared.opts.data_labels, "token_downsampling_factor", option)
    assert pasted(host, "ToDo factor: 3.0, ToDo factor2: 2.0, ToDo disable after: 0.8") == {}
    assert pasted(host, "ToDo factor: 3.0, ToDo downsample factor: 2") == {"enabled": True, "factor": 2}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ("ToDo downsample factor: 9", "factor = 9"),
        ("ToDo downsample factor: none", "factor = 'none'"),
        ("ToDo downsample factor: 2, ToDo depths: 1.5", "max_depth = 1.5"),
        ("ToDo downsample factor: 2, ToDo passes: second", "passes = 'second'"),
        ("ToDo downsample factor: 2, ToDo moving grid: perhaps", "moving = 'perhaps'"),
        ("ToDo factor: 2, ToDo factor2: many", "many"),
    ],
)
def test_a_text_that_cannot_be_read(host, swallowed, params, named):
    """ToDo is switched off, the other controls stay as they stand, and the user is told once.

    No error is raised: a host may read the fields of other extensions behind ours without getting over one.
    """
    with pytest.warns(UserWarning, match=named) as warnings:  # without a browser gradio.Warning warns in Python
        assert host.infotext_utils.paste("txt2img", f"{BASE}, {params}") == [False] + [None] * 8
    assert len(warnings) == 1
    assert swallowed() == []


# ---- "Disregard fields from pasted infotext"

FULL = (
    f"{BASE}, ToDo downsample factor: 3, ToDo depths: 3, ToDo start: 0.1, ToDo end: 0.8, ToDo deeper factor: 1.5, "
    "ToDo passes: first, ToDo hires factor: 2, ToDo moving grid: False, ToDo version: 0.2.0"
)
VALUES = [True, 3, 3, 0.1, 0.8, 1.5, "first", 2, False]
LABELS = [
    "ToDo",
    "ToDo downsample factor",
    "ToDo depths",
    "ToDo start",
    "ToDo end",
    "ToDo deeper factor",
    "ToDo passes",
    "ToDo hires factor",
    "ToDo moving grid",
]


def test_fields_to_disregard_are_listed(host):
    assert host.infotext_utils.get_infotext_names() == LABELS * 2  # one list for each tab


@pytest.mark.parametrize("text", [FULL, BASE, f"{BASE}, ToDo downsample factor: 99"])
def test_all_of_todo_disregarded(host, text):
    host.shared.opts.infotext_skip_pasting = ["ToDo"]
    assert host.infotext_utils.paste("txt2img", text) == [None] * 9


@pytest.mark.parametrize("label", LABELS[1:])
def test_one_control_disregarded(host, label):
    host.shared.opts.infotext_skip_pasting = [label]
    position = LABELS.index(label)
    for text, values in ((FULL, VALUES), (BASE, DEFAULTS)):
        expected = list(values)
        expected[position] = None
        assert host.infotext_utils.paste("txt2img", text) == expected


def test_disregarded_in_the_api(host):
    host.shared.opts.infotext_skip_pasting = ["ToDo end"]
    script = host.ui.runners()["txt2img"].script("ToDo")
    args = host.Api.script_args("txt2img", {}, FULL)[script.args_from : script.args_to]
    assert list(args) == [*VALUES[:4], 1.0, *VALUES[5:]]


def test_labels_survive_copies(host):
    """Labels must survive copying: gradio copies the page, and the option's values go through JSON."""
    labels = [label for _, label in host.infotext_utils.paste_fields["txt2img"]["fields"]]
    assert copy.deepcopy(labels) == labels == json.loads(json.dumps(labels))
