"""API arguments: lists, dictionaries and infotext; and what happens to wrong ones."""

from __future__ import annotations

import pytest
import torch

from tests.script.extension import DEEP, DEFAULTS

TABS = ["txt2img", "img2img"]


def keys(answer):
    """(keys at depth 1, keys at depth 2) of each call."""
    assert answer.status == 200, answer.body
    return [(call.top, call.keys[DEEP]) for call in answer.calls]


@pytest.fixture
def run(run):
    """Pictures of 64x64, so grids of 8x8 and 4x4."""
    run.fields = {"width": 64, "height": 64}
    return run


DENSE, TWO = (64, 16), (16, 16)

GOOD = [
    ([], [DENSE] * 4),
    ([False], [DENSE] * 4),
    ([True], [TWO] * 4),
    ([True, 4], [(4, 16)] * 4),
    ([True, 1.5], [(25, 16)] * 4),
    ([True, 2, 2], [(16, 4)] * 4),
    ([True, 2, 2.0, 0.5], [DENSE] * 2 + [(16, 4)] * 2),
    ([True, 2, 2, 0.25, 0.5], [DENSE, (16, 4), DENSE, DENSE]),
    ([True, 2, 2, 0, 1, 4], [(16, 1)] * 4),
    ([True, 2, 2, 0, 1, 4, "hires"], [(16, 1)] * 4),
    ([True, 2, 2, 0, 1, 4, "both", True], [DENSE] * 4),
    ([{}], [DENSE] * 4),
    ([{"enabled": True}], [TWO] * 4),
    ([{"enabled": True, "factor": 3, "end": 0.75}], [(4, 16)] * 3 + [DENSE]),
    ([{"enabled": True, "deeper_factor": 4, "max_depth": 2}], [(16, 1)] * 4),
    ([{"factor": 4}], [DENSE] * 4),
    ([*DEFAULTS], [DENSE] * 4),
]


@pytest.mark.parametrize(("args", "expected"), GOOD, ids=[str(args) for args, _ in GOOD])
def test_lists_and_dictionaries(run, args, expected):
    assert keys(run.post("txt2img", args)) == expected


def test_img2img(run):
    assert keys(run.post("img2img", [True, 2, 2, 0.25, 0.5])) == [DENSE, (16, 4), DENSE, DENSE]
    assert keys(run.post("img2img", [{"enabled": True, "factor": 4}])) == [(4, 16)] * 4


def test_no_arguments(run):
    assert keys(run.post("txt2img")) == [DENSE] * 4
    assert keys(run.post("txt2img", alwayson_scripts={"ToDo": {"args": []}})) == [DENSE] * 4


def test_the_title_is_found_in_any_case(run):
    assert keys(run.post("txt2img", alwayson_scripts={"todo": {"args": [True]}})) == [TWO] * 4


def test_requests_do_not_remember(run):
    assert keys(run.post("txt2img", [{"enabled": True, "factor": 4}])) == [(4, 16)] * 4
    assert keys(run.post("txt2img", [True])) == [TWO] * 4
    assert keys(run.post("txt2img")) == [DENSE] * 4


# ---- wrong values

BAD = [  # arguments, and what the answer has to name: argument, value, what is allowed
    (["yes"], ["enabled", "'yes'", "true or false"]),
    ([1], ["enabled", "1", "true or false"]),
    ([None], ["enabled", "None", "true or false"]),
    ([True, 9], ["factor", "9", "1 to 8"]),
    ([True, 0.5], ["factor", "0.5", "1 to 8"]),
    ([True, "2"], ["factor", "'2'", "1 to 8"]),
    ([True, None], ["factor", "None", "1 to 8"]),
    ([True, True], ["factor", "True", "1 to 8"]),
    ([True, [2]], ["factor", "[2]", "1 to 8"]),
    ([True, float("nan")], ["factor", "nan", "1 to 8"]),
    ([True, 2, 5], ["max_depth", "5", "whole number", "1 to 4"]),
    ([True, 2, 1.5], ["max_depth", "1.5", "whole number", "1 to 4"]),
    ([True, 2, 1, -0.1], ["start", "-0.1", "0 to 1"]),
    ([True, 2, 1, 0, 1.01], ["end", "1.01", "0 to 1"]),
    ([True, 2, 1, 0.6, 0.4], ["end", "0.4", "start", "0.6"]),
    ([True, 2, 1, 0, 1, 0], ["deeper_factor", "0", "1 to 8"]),
    ([True, 2, 1, 0, 1, 2, "second"], ["passes", "'second'", "both", "first", "hires"]),
    ([True, 2, 1, 0, 1, 2, "both", 0], ["auto", "0", "true or false"]),
    ([{"enabled": True, "factor": 9}], ["factor", "9", "1 to 8"]),
    ([{"enabled": True, "start": 0.6, "end": 0.4}], ["end", "0.4", "start", "0.6"]),
    ([{"enabled": True, "faktor": 2}], ["faktor", "2", "factor", "max_depth", "deeper_factor", "passes", "auto"]),
    ([{"enabled": True, "Factor": 2}], ["'Factor'", "factor"]),
    ([False, 9], ["factor", "9", "1 to 8"]),  # switched off: still not what the caller means
    ([{"factor": 9}], ["factor", "9", "1 to 8"]),
]


def assert_refused(answer, *words):
    assert answer.status == 422
    assert "images" not in answer.body
    for text in (answer.body["detail"], answer.body["errors"]):
        assert "ToDo" in text
        for word in words:
            assert word in text
    assert answer.calls == [], "a picture was begun"


@pytest.mark.parametrize(("args", "words"), BAD, ids=[str(args) for args, _ in BAD])
def test_wrong_values(run, swallowed, args, words):
    answer = run.post("txt2img", args)
    assert_refused(answer, *words)
    assert [message for message, _ in swallowed()] == ["API error"]


def test_the_next_request_works(run, swallowed):
    good = run.post("txt2img", [True]).body["images"]
    assert_refused(run.post("txt2img", [True, 9]), "factor")
    swallowed()
    again = run.post("txt2img", [True]).body["images"]
    assert torch.equal(torch.stack(good), torch.stack(again))


@pytest.mark.parametrize(
    ("tab", "request_fields"),
    [
        ("img2img", {}),
        ("img2img", {"n_iter": 2}),
        ("txt2img", {"n_iter": 2, "batch_size": 2}),
        ("txt2img", {"enable_hr": True}),
        ("txt2img", {"enable_hr": True, "firstpass_image": torch.zeros(1, 4, 4, 4)}),
        ("txt2img", {"sampler_name": "DPM adaptive"}),
        ("img2img", {"sampler_name": "UniPC"}),
    ],
)
def test_wrong_values_in_every_kind_of_job(run, swallowed, tab, request_fields):
    assert_refused(run.post(tab, [True, 2, 9], **request_fields), "max_depth", "9", "1 to 4")
    swallowed()


def test_wrong_values_for_a_pass_that_is_left_out(run, swallowed):
    """They are wrong whichever pass they are meant for."""
    answer = run.post("txt2img", [{"enabled": True, "passes": "hires", "factor": 0}], enable_hr=True)
    assert_refused(answer, "factor", "0", "1 to 8")
    swallowed()


@pytest.mark.parametrize("args", [[False, 2, 1, 0.6, 0.4], [{"start": 0.6, "end": 0.4}]])
def test_an_empty_range_does_not_matter_while_switched_off(run, args):
    assert keys(run.post("txt2img", args)) == [DENSE] * 4


def test_refusals_leave_no_infotext(run, host, swallowed):
    p = run.prepare("txt2img", {"enabled": True, "factor": 9})
    with pytest.raises(host.todo.SettingsError):
        host.processing.process_images(p)
    assert p.extra_generation_params == {}
    assert p.comments == {}


# ---- infotext

TEXT = "a\nSteps: 4, Sampler: Euler, Seed: 1"


@pytest.mark.parametrize("tab", TABS)
def test_infotext(run, tab):
    text = f"{TEXT}, ToDo factor: 1.5, ToDo max depth: 2, ToDo end: 0.5, ToDo deeper factor: 4"
    answer = run.post(tab, infotext=text)
    assert keys(answer) == [(25, 1)] * 2 + [DENSE] * 2


def test_infotext_without_todo(run):
    assert keys(run.post("txt2img", infotext=TEXT)) == [DENSE] * 4


def test_infotext_of_an_answer(run):
    settings = {"enabled": True, "factor": 3.5, "max_depth": 2, "start": 0.25, "passes": "first"}
    first = run.post("txt2img", [settings])
    again = run.post("txt2img", infotext=first.body["info"])
    assert keys(first) == keys(again) == [DENSE] + [(4, 4)] * 3
    assert again.body["info"] == first.body["info"]
    assert torch.equal(torch.stack(again.body["images"]), torch.stack(first.body["images"]))


def test_arguments_go_before_infotext(run):
    text = f"{TEXT}, ToDo factor: 4, ToDo max depth: 1, ToDo end: 0.5"
    assert keys(run.post("txt2img", [True, 2], infotext=text)) == [TWO] * 2 + [DENSE] * 2
    assert keys(run.post("txt2img", [{"enabled": True, "end": 0.25}], infotext=text)) == [(4, 16)] + [DENSE] * 3
    assert keys(run.post("txt2img", [False], infotext=text)) == [DENSE] * 4


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("ToDo factor: 9, ToDo max depth: 1", ["factor", "9", "1 to 8"]),
        ("ToDo factor: two, ToDo max depth: 1", ["factor", "two", "1 to 8"]),
        ("ToDo factor: 2, ToDo passes: all", ["passes", "all", "both"]),
        ("ToDo factor: 2, ToDo start: 0.6, ToDo end: 0.4", ["end", "0.4", "0.6"]),
    ],
)
@pytest.mark.filterwarnings("ignore:ToDo")
def test_wrong_infotext(run, swallowed, params, words):
    assert_refused(run.post("txt2img", infotext=f"{TEXT}, {params}"), *words)
    swallowed()
