"""Infotext: what is written, and what comes back by pasting and through the API."""

from __future__ import annotations

import pytest

from tests.script.extension import DEFAULTS, NAMES, positional

TABS = ["txt2img", "img2img"]
BASE = "a\nSteps: 4, Sampler: Euler, Seed: 1"

WRITTEN = [
    ({}, {"ToDo factor": "2", "ToDo max depth": "1"}),
    ({"factor": 3.5}, {"ToDo factor": "3.5", "ToDo max depth": "1"}),
    ({"factor": 2.718281828}, {"ToDo factor": "2.718281828", "ToDo max depth": "1"}),
    ({"max_depth": 3}, {"ToDo factor": "2", "ToDo max depth": "3", "ToDo deeper factor": "2"}),
    (
        {"max_depth": 2, "deeper_factor": 1.5},
        {"ToDo factor": "2", "ToDo max depth": "2", "ToDo deeper factor": "1.5"},
    ),
    ({"deeper_factor": 3}, {"ToDo factor": "2", "ToDo max depth": "1", "ToDo deeper factor": "3"}),
    ({"start": 0.25}, {"ToDo factor": "2", "ToDo max depth": "1", "ToDo start": "0.25"}),
    ({"end": 0.8}, {"ToDo factor": "2", "ToDo max depth": "1", "ToDo end": "0.8"}),
    ({"end": 0}, {"ToDo factor": "2", "ToDo max depth": "1", "ToDo end": "0"}),
    ({"passes": "hires"}, {"ToDo factor": "2", "ToDo max depth": "1", "ToDo passes": "hires"}),
    ({"auto": True}, {"ToDo factor": "auto", "ToDo max depth": "1"}),
    ({"auto": True, "max_depth": 2}, {"ToDo factor": "auto", "ToDo max depth": "2"}),
]


@pytest.mark.parametrize(("settings", "params"), WRITTEN, ids=[str(settings) for settings, _ in WRITTEN])
def test_written(run, settings, params):
    job = run.txt2img(settings, steps=1)
    assert job.params == params
    assert set(job.result.infotexts) == {job.result.info}


@pytest.mark.parametrize("todo", [{}, {"factor": 3, "max_depth": 2}])
def test_not_written_when_switched_off(run, todo):
    assert run("txt2img", todo, steps=1).params == {}


def test_in_every_picture(run):
    job = run.img2img(n_iter=2, batch_size=2, steps=1)
    assert len(job.result.infotexts) == 4
    assert all("ToDo factor: 2, ToDo max depth: 1" in text for text in job.result.infotexts)


def test_what_another_extension_wrote_under_the_same_key(run, watch):
    """The extension sd-webui-token-downsampling does, if both are on."""

    def overwrite(moment, p):
        if moment == "process":
            p.extra_generation_params.update({"ToDo factor": 5.0, "ToDo factor2": 1.0})

    with watch(overwrite):
        job = run.txt2img({"factor": 3}, n_iter=2, steps=1)
    assert job.params == {"ToDo factor": "3", "ToDo max depth": "1", "ToDo factor2": "1.0"}


# ---- reading back

SETTINGS = [
    {},
    {"factor": 1},
    {"factor": 2.718281828459045, "end": 0.1},
    {"factor": 8, "max_depth": 4, "deeper_factor": 1},
    {"max_depth": 2, "deeper_factor": 3.5, "start": 0.15, "end": 0.85, "passes": "first"},
    {"start": 1, "passes": "hires"},
    {"start": 0.3, "end": 0.3},
    {"auto": True, "max_depth": 3},
]
ROUND_TRIPS = pytest.mark.parametrize("settings", SETTINGS, ids=map(str, SETTINGS))


@pytest.mark.parametrize("tab", TABS)
@ROUND_TRIPS
def test_pasted_in_the_browser(host, run, tab, settings):
    settings = {"enabled": True, **settings}
    text = run(tab, settings, steps=1).result.info
    pasted = host.infotext_utils.paste(tab, text)
    assert pasted == positional(settings)


@pytest.mark.parametrize("tab", TABS)
@ROUND_TRIPS
def test_read_by_the_api(host, run, tab, settings):
    """It casts to the type of the control's value."""
    settings = {"enabled": True, **settings}
    text = run(tab, settings, steps=1).result.info
    script = host.ui.runners()[tab].script("ToDo")
    args = host.Api.script_args(tab, {}, text)[script.args_from : script.args_to]
    assert list(args) == positional(settings)
    assert [type(value) for value in args] == [type(value) for value in DEFAULTS]


@pytest.mark.parametrize("tab", TABS)
def test_a_text_without_todo_switches_it_off(host, tab):
    """Whatever the controls stood at before: all go back to their defaults."""
    assert host.infotext_utils.paste(tab, BASE) == DEFAULTS


def pasted(host, params):
    """Names and values of the controls that a paste moves away from their defaults."""
    values = host.infotext_utils.paste("txt2img", f"{BASE}, {params}")
    return {name: value for name, value, default in zip(NAMES, values, DEFAULTS, strict=True) if value != default}


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        ("ToDo factor: 3", {"enabled": True, "factor": 3}),
        ("ToDo factor: 2, ToDo end: 0.5", {"enabled": True, "end": 0.5}),
        ("ToDo factor: auto, ToDo max depth: 2", {"enabled": True, "auto": True, "max_depth": 2}),
        ("ToDo max depth: 2, ToDo end: 0.5", {}),  # no factor: no ToDo
    ],
)
def test_absent_keys_mean_defaults(host, params, changed):
    assert pasted(host, params) == changed


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        # as the extension sd-webui-token-downsampling writes them
        ("ToDo factor: 2.0, ToDo max depth: 1, ToDo disable after: 1.0", {}),
        ("ToDo factor: 3.5, ToDo max depth: 2, ToDo disable after: 0.6", {"factor": 3.5, "max_depth": 2, "end": 0.6}),
        ("ToDo factor: 2.0, ToDo max depth: 2.0, ToDo disable after: 0.0", {"max_depth": 2, "end": 0}),
        ("ToDo factor: 3.0, ToDo factor2: 2.0, ToDo disable after: 0.8", {"factor": 3, "max_depth": 2, "end": 0.8}),
        ("ToDo factor: 3.0, ToDo factor2: 1.5", {"factor": 3, "max_depth": 2, "deeper_factor": 1.5}),
        ("ToDo factor: 3.0, ToDo factor2: 1.0, ToDo disable after: 1.0", {"factor": 3}),
        ("ToDo factor: 5.0, ToDo factor2: 1", {"factor": 5}),
    ],
)
def test_texts_of_the_other_extension(host, params, changed):
    assert pasted(host, params) == {"enabled": True, **changed}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ("ToDo factor: 9", "factor = 9"),
        ("ToDo factor: none", "factor = 'none'"),
        ("ToDo factor: 2, ToDo max depth: 1.5", "max_depth = 1.5"),
        ("ToDo factor: 2, ToDo passes: second", "passes = 'second'"),
        ("ToDo factor: 2, ToDo factor2: many", "many"),
    ],
)
def test_a_text_that_cannot_be_read(host, swallowed, params, named):
    """The controls stay as they are, and the user is told once, not once for each control."""
    with pytest.warns(UserWarning, match=named) as warnings:  # outside of a browser gradio.Warning is a Python one
        assert host.infotext_utils.paste("txt2img", f"{BASE}, {params}") == [None] * 8
    assert len(warnings) == 1
    assert all(named in str(error) for _, error in swallowed())
