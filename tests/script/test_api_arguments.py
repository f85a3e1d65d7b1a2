"""API arguments: lists, dictionaries and infotext, and the answers to wrong ones."""

from __future__ import annotations

import pytest
import torch

from tests.script.extension import DEEP, DEFAULTS

TABS = ["txt2img", "img2img"]


def keys(answer):
    """Returns (keys at depth 1, keys at depth 2) of each call."""
    assert answer.status == 200, answer.body
    return [(call.top, call.keys[DEEP]) for call in answer.calls]


@pytest.fixture
def run(run):
    """Run with images of 64x64, so that the grids are 8x8 and 4x4."""
    run.fields = {"width": 64, "height": 64}
    return run


DENSE, TWO = (64, 16), (16, 16)

GOOD = [
    ([], [DENSE] * 4),
    ([False], [DENSE] * 4),
    ([True], [DENSE] * 4),  # the factor is chosen by size: small grids stay dense
    ([True, 2, 1], [TWO] * 4),
    ([True, 4], [(4, 4)] * 4),  # half of the factor at depth 2
    ([True, 4, 1], [(4, 16)] * 4),
    ([True, 1.5], [(25, 16)] * 4),
    ([True, 2, 2.0, 0.5], [DENSE] * 2 + [TWO] * 2),
    ([True, 2, 2, 0.25, 0.5], [DENSE, TWO, DENSE, DENSE]),
    ([True, 2, 2, 0, 1, 4], [(16, 1)] * 4),
    ([True, 2, 2, 0, 1, 4, "hires"], [(16, 1)] * 4),
    ([True, 2, 2, 0, 1, 4, "both", 3], [(16, 1)] * 4),  # "both" has no effect: there is one pass
    ([True, 2, 2, 0, 1, 4, "both", 0, False], [(16, 1)] * 4),
    ([{}], [DENSE] * 4),
    ([{"enabled": True, "factor": 2}], [TWO] * 4),
    ([{"enabled": True, "factor": 3, "end": 0.75}], [(4, 4)] * 3 + [DENSE]),
    ([{"deeper_factor": 4, "factor": 2}], [(16, 1)] * 4),
    ([{"factor": 4}], [(4, 4)] * 4),
    ([{"enabled": False, "factor": 4}], [DENSE] * 4),
    ([*DEFAULTS], [DENSE] * 4),
]


@pytest.mark.parametrize(("args", "expected"), GOOD, ids=[str(args) for args, _ in GOOD])
def test_lists_and_dictionaries(run, args, expected):
    assert keys(run.post("txt2img", args)) == expected


def test_img2img(run):
    assert keys(run.post("img2img", [True, 2, 2, 0.25, 0.5])) == [DENSE, TWO, DENSE, DENSE]
    assert keys(run.post("img2img", [{"factor": 4}])) == [(4, 4)] * 4


@pytest.mark.parametrize(("steps", "kept"), [(10, 64), (15, 48), (16, 40)])
def test_auto_factor_of_a_size(host, run, watch, steps, kept):
    """With True alone, a grid above 64 x 64 tokens is downsampled, to as many as the number of steps allows."""

    def interrupt(moment, subject):
        host.shared.state.interrupted = moment == "cfg_denoiser"

    with watch(interrupt):
        answer = run.post("txt2img", [True], width=768, height=768, steps=steps)
    assert keys(answer) == [(kept**2, min(kept, 48) ** 2)]


def test_hires_factor(run):
    answer = run.post("txt2img", [{"factor": 4, "max_depth": 1, "hires_factor": 2}], enable_hr=True, steps=1)
    assert keys(answer) == [(4, 16), (64, 64)]


def test_no_arguments(run):
    assert keys(run.post("txt2img")) == [DENSE] * 4
    assert keys(run.post("txt2img", alwayson_scripts={"ToDo": {"args": []}})) == [DENSE] * 4


def test_the_title_is_found_in_any_case(run):
    assert keys(run.post("txt2img", alwayson_scripts={"todo": {"args": [True, 2]}})) == [TWO] * 4


def test_requests_do_not_remember(run):
    assert keys(run.post("txt2img", [{"factor": 4, "max_depth": 1}])) == [(4, 16)] * 4
    assert keys(run.post("txt2img", [True, 4])) == [(4, 4)] * 4
    assert keys(run.post("txt2img")) == [DENSE] * 4


# ---- wrong values

SIZES = ["0, or", "1 to 8"]
BAD = [  # arguments, and the words that the answer must have: argument, value, allowed values
    ([True, 9], ["factor", "9", *SIZES]),
    ([True, 0.5], ["factor", "0.5", *SIZES]),
    ([True, "2"], ["factor", "'2'", *SIZES]),
    ([True, None], ["factor", "None", *SIZES]),
    ([True, True], ["factor", "True", *SIZES]),
    ([True, [2]], ["factor", "[2]", *SIZES]),
    ([True, float("nan")], ["factor", "nan", *SIZES]),
    ([True, 2, 5], ["max_depth", "5", "whole number", "1 to 4"]),
    ([True, 2, 1.5], ["max_depth", "1.5", "whole number", "1 to 4"]),
    ([True, 2, 1, -0.1], ["start", "-0.1", "0 to 1"]),
    ([True, 2, 1, 0, 1.01], ["end", "1.01", "0 to 1"]),
    ([True, 2, 1, 0.6, 0.4], ["end", "0.4", "start", "0.6"]),
    ([True, 2, 1, 0, 1, 0.5], ["deeper_factor", "0.5", *SIZES]),
    ([True, 2, 1, 0, 1, 2, "second"], ["passes", "'second'", "both", "first", "hires"]),
    ([True, 2, 1, 0, 1, 2, "both", False], ["hires_factor", "False", *SIZES]),
    ([True, 2, 1, 0, 1, 2, "both", 0, 0], ["moving", "0", "true or false"]),
    ([{"enabled": True, "factor": 9}], ["factor", "9", *SIZES]),
    ([{"enabled": True, "start": 0.6, "end": 0.4}], ["end", "0.4", "start", "0.6"]),
    ([{"enabled": True, "faktor": 2}], ["faktor", "2", "factor", "max_depth", "passes", "hires_factor", "moving"]),
    ([{"auto": True}], ["auto", "factor"]),
    ([{"enabled": True, "Factor": 2}], ["'Factor'", "factor"]),
    ([{"enabled": None}], ["enabled", "None", "true or false"]),
    ([{"enabled": 0}], ["enabled", "0", "true or false"]),
    ([{"factor": 9}], ["factor", "9", *SIZES]),
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
    assert swallowed() == []  # a swallowed error would print a traceback


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
    """Wrong values are refused even if their pass is left out."""
    answer = run.post("txt2img", [{"enabled": True, "passes": "hires", "factor": 9}], enable_hr=True)
    assert_refused(answer, "factor", "9", "1 to 8")
    swallowed()


OTHERS = [  # ToDo is not asked for, and the rest of the list belongs to somebody else
    ([None, 3], False),
    ([None, "comma", 1], False),
    ([False, 99], False),
    ([False, "a", None, [], {}, 0.5, 1, 2, 3], False),
    ([False, 2, 1, 0.6, 0.4], False),
    ([{"enabled": False, "factor": 99, "steps": 3}], False),
    (["yes"], True),
    ([1, 3], True),
    ([0], True),
    ([0.5, "comma", 1], True),
    ([[True], 3], True),
]


@pytest.mark.parametrize(("args", "warned"), OTHERS, ids=[str(args) for args, _ in OTHERS])
def test_lists_that_are_not_for_todo(run, caplog, args, warned):
    """A client or a queue may have made the list before ToDo was installed: the image is made without ToDo."""
    answer = run.post("txt2img", args, n_iter=2)
    assert keys(answer) == [DENSE] * 8
    assert "ToDo" not in answer.body["info"] + answer.body["comments"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == warned and all(f"enabled = {args[0]!r}" in warning for warning in warnings)


def test_refusals_leave_no_infotext(run, host):
    p = run.prepare("txt2img", {"enabled": True, "factor": 9})
    p.is_api = True
    with pytest.raises(host.todo.arguments.SettingsError):
        host.processing.process_images(p)
    assert p.extra_generation_params == {}
    assert p.comments == {}


def test_refusals_of_the_page(run, host):
    """They end as an interrupt does, with the reason under the image."""
    p = run.prepare("txt2img", {"enabled": True, "factor": 9}, n_iter=2)
    result = host.processing.process_images(p)
    assert result.images == [] and host.shared.state.interrupted
    assert p.extra_generation_params == {}
    (comment,) = p.comments
    assert comment.startswith("ToDo: factor = 9 is not allowed")
    assert run.txt2img().down == [True] * 4


# ---- infotext

TEXT = "a\nSteps: 4, Sampler: Euler, Seed: 1"


@pytest.mark.parametrize("tab", TABS)
def test_infotext(run, tab):
    text = f"{TEXT}, ToDo downsample factor: 1.5, ToDo end: 0.5, ToDo deeper factor: 4"
    answer = run.post(tab, infotext=text)
    assert keys(answer) == [(25, 1)] * 2 + [DENSE] * 2


def test_infotext_without_todo(run):
    assert keys(run.post("txt2img", infotext=TEXT)) == [DENSE] * 4


def test_infotext_of_an_answer(run):
    settings = {"factor": 3.5, "deeper_factor": 2, "start": 0.25, "passes": "first", "hires_factor": 2, "moving": False}
    first = run.post("txt2img", [settings])
    again = run.post("txt2img", infotext=first.body["info"])
    assert keys(first) == keys(again) == [DENSE] + [(4, 4)] * 3
    assert again.body["info"] == first.body["info"]
    assert torch.equal(torch.stack(again.body["images"]), torch.stack(first.body["images"]))


def test_arguments_go_before_infotext(run):
    """As for all scripts of the host, the infotext supplies the arguments that are missing."""
    text = f"{TEXT}, ToDo downsample factor: 4, ToDo depths: 1, ToDo end: 0.5"
    assert keys(run.post("txt2img", [True, 2], infotext=text)) == [TWO] * 2 + [DENSE] * 2
    assert keys(run.post("txt2img", [{"enabled": True, "end": 0.25}], infotext=text)) == [(4, 16)] + [DENSE] * 3
    assert keys(run.post("txt2img", [False], infotext=text)) == [DENSE] * 4


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("ToDo downsample factor: 9", ["factor", "9", "1 to 8"]),
        ("ToDo downsample factor: two", ["factor", "two", "1 to 8"]),
        ("ToDo downsample factor: 2, ToDo passes: all", ["passes", "all", "both"]),
        ("ToDo start: 0.6, ToDo end: 0.4", ["end", "0.4", "0.6"]),
    ],
)
@pytest.mark.filterwarnings("ignore:ToDo")
@pytest.mark.parametrize("disregarded", [[], ["ToDo hires factor"]])
def test_wrong_infotext(run, host, swallowed, params, words, disregarded):
    host.shared.opts.infotext_skip_pasting = disregarded
    assert_refused(run.post("txt2img", infotext=f"{TEXT}, {params}"), *words)
    swallowed()
