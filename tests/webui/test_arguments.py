"""Arguments of the API, the infotext, the comment, and X/Y/Z plots."""

import re

import numpy as np
import pytest

from tests.webui.client import RequestFailed, assert_keys

PAPER = {"factor": 2, "max_depth": 1, "moving": False}

BAD = [
    ([True, 9], "factor", "9", "0, or a number from 1 to 8"),
    ([True, "2"], "factor", "'2'", "1 to 8"),
    ([True, None], "factor", "None", "1 to 8"),
    ([True, 2, 2.5], "max_depth", "2.5", "1 to 4"),
    ([True, 2, 5], "max_depth", "5", "1 to 4"),
    ([True, 2, 1, -0.1], "start", "-0.1", "0 to 1"),
    ([True, 2, 1, 0.6, 0.5], "end", "0.5", "start = 0.6"),
    ([True, 2, 1, 0, 1, 0.5], "deeper_factor", "0.5", "1 to 8"),
    ([True, 2, 1, 0, 1, 2, "second"], "passes", "'second'", "'both', 'first', 'hires'"),
    ([True, 2, 1, 0, 1, 2, "both", False], "hires_factor", "False", "1 to 8"),
    ([True, 2, 1, 0, 1, 2, "both", 0, "yes"], "moving", "'yes'", "true or false"),
    ({"facotr": 3}, "facotr", "3", "enabled, factor, max_depth"),
    ({"enabled": 1}, "enabled", "1", "true or false"),
    ({"end": 2}, "end", "2", "0 to 1"),
]


@pytest.mark.parametrize(("todo", "name", "value", "allowed"), BAD)
def test_bad_values_fail_the_request(client, todo, name, value, allowed):
    for generate in (client.txt2img, client.hires):
        with client.recording() as record, pytest.raises(RequestFailed) as failure:
            generate(todo)
        assert failure.value.status == 422
        assert all(text in failure.value.text for text in ("ToDo", name, value, allowed)), failure.value.text
        assert record.attentions == []


def test_bad_values_fail_img2img_and_the_next_request_works(client):
    image = client.txt2img().image
    with pytest.raises(RequestFailed, match="factor = 9 is not allowed"):
        client.img2img(image, todo=[True, 9])
    with client.recording() as record:
        client.img2img(image, todo={**PAPER, "factor": 4})
    assert_keys(record, lambda a: 4 if a.depth == 1 else 1)


@pytest.mark.parametrize("todo", [[None, 2], [0.5, "comma", 1], [False, 99], {"enabled": False, "factor": 99}])
def test_arguments_that_are_not_for_todo(client, webui, todo):
    """A queue may hold tasks from before ToDo was installed. Values that cannot be meant for ToDo are logged once."""
    position = webui.log_size()
    made = client.txt2img(todo, n_iter=2)
    assert "ToDo" not in made.infotext
    warned = webui.log_since(position).count("ToDo is off: enabled = 0.5 is neither true nor false")
    assert warned == (todo == [0.5, "comma", 1])


def test_common_mistakes(client):
    """What docs/api.md says of them: the host deals with these requests, and ToDo cannot tell of it."""
    with pytest.raises(RequestFailed) as failure:
        client.txt2img(alwayson_scripts={"ToDo": {"args": {"factor": 3}}})
    assert failure.value.status == 500 and "KeyError" in failure.value.text
    for ignored in ([True, 2], {"enabled": True, "factor": 2}):
        assert "ToDo" not in client.txt2img(alwayson_scripts={"ToDo": ignored}).infotext
    nine = [True, 2, 1, 0, 1, 0, "both", 0, False]
    assert client.txt2img([*nine, 10, "eleven"]).infotext == client.txt2img(nine).infotext


def test_a_list_and_a_dictionary_say_the_same(client):
    one = client.txt2img([True, 3, 2, 0, 0.8, 1.5])
    other = client.txt2img({"factor": 3, "max_depth": 2.0, "end": 0.8, "deeper_factor": 1.5})
    assert np.array_equal(one.image, other.image) and one.infotext == other.infotext


def test_missing_arguments_take_defaults(client):
    every = [True, 2, 2, 0, 1, 0, "both", 0, True]
    assert np.array_equal(client.txt2img([True, 2]).image, client.txt2img(every).image)


def test_missing_arguments_beside_an_infotext(client):
    """As for all scripts of the host, the infotext supplies the missing arguments."""
    text = client.txt2img({"factor": 4, "max_depth": 1, "end": 0.5}).infotext
    assert (
        "ToDo downsample factor: 2, ToDo depths: 1, ToDo end: 0.5, "
        in client.txt2img([True, 2], infotext=text).infotext
    )


def test_the_script_is_listed(client):
    assert "todo" in client.get("/sdapi/v1/scripts")["txt2img"]
    info = [script for script in client.get("/sdapi/v1/script-info") if script["name"] == "todo"]
    assert [script["is_img2img"] for script in info] == [False, True]
    assert len(info[0]["args"]) == 9


# ---- infotext


INFOTEXTS = [
    ([True], "ToDo downsample factor: auto, ToDo version: "),
    ([True, 2.5, 3], "ToDo downsample factor: 2.5, ToDo depths: 3, ToDo version: "),
    (
        [True, 4, 1, 0.1, 0.8, 3, "hires", 2, False],
        "ToDo downsample factor: 4, ToDo depths: 1, ToDo start: 0.1, ToDo end: 0.8, ToDo deeper factor: 3, "
        "ToDo passes: hires, ToDo hires factor: 2, ToDo moving grid: False, ToDo version: ",
    ),
]


@pytest.mark.parametrize(("todo", "text"), INFOTEXTS)
def test_infotext_restores_the_settings(client, todo, text):
    # Without hires fix, because the host refuses its own infotext's value for the hires sampler.
    made = client.txt2img(todo)
    assert text in made.infotext
    again = client.txt2img(infotext=made.infotext)
    assert again.infotext == made.infotext
    assert np.array_equal(again.image, made.image)


def test_nothing_is_written_when_off(client):
    assert "ToDo" not in client.txt2img([False, 3]).infotext


def test_infotext_without_todo_switches_it_off(client):
    made = client.txt2img()
    assert np.array_equal(client.txt2img(infotext=made.infotext).image, made.image)


def test_infotext_of_the_other_extension(client):
    text = client.txt2img().infotext + ", ToDo factor: 2.0, ToDo factor2: 1.5, ToDo disable after: 0.5"
    with client.recording() as record:
        made = client.txt2img(infotext=text)
    assert (
        "ToDo downsample factor: 2, ToDo end: 0.5, ToDo deeper factor: 1.5, ToDo moving grid: False, " in made.infotext
    )
    assert_keys(record, lambda a: {1: 2, 2: 1.5}.get(a.depth, 1) if a.step < 2 else 1)


def test_bad_infotext_fails_the_request(client):
    text = client.txt2img().infotext
    for bad in ("ToDo downsample factor: 99", "ToDo downsample factor: many", "ToDo depths: 2.5"):
        with pytest.raises(RequestFailed, match="is not allowed"):
            client.txt2img(infotext=f"{text}, {bad}")


def test_fields_to_disregard(client):
    text = client.txt2img({**PAPER, "end": 0.5}).infotext
    with client.options(infotext_skip_pasting=["ToDo end"]):
        made = client.txt2img(infotext=text)
    assert "ToDo depths: 1" in made.infotext and "ToDo end" not in made.infotext
    with client.options(infotext_skip_pasting=["ToDo"]):
        assert "ToDo" not in client.txt2img(infotext=text).infotext


# ---- comment


def comment(client, todo, generate="txt2img", **request):
    with client.recording() as record:
        getattr(client, generate)(todo, **request)
    lines = record.generations[-1]["comments"].splitlines()
    ours = [line for line in lines if line.startswith("ToDo")]
    assert len(ours) <= 1
    return ours[0] if ours else None


def test_comments(client):
    assert comment(client, None) is None
    assert comment(client, [False]) is None
    share = r"\d+ % of self-attention's work"
    assert re.fullmatch(
        rf"ToDo: {share}, 4 of 4 steps \[depth 1: 16x8 tokens, keys from 8x4 \(5 layers\)\]", comment(client, PAPER)
    )
    assert re.fullmatch(
        rf"ToDo: 2 samplings: {share}, 2 of 4 steps \[depth 1: 16x8 tokens, keys from 8x4 \(5 layers\); "
        r"depth 2: 8x4 tokens, keys from 4x2 \(5 layers\)\]",
        comment(client, {"factor": 2, "deeper_factor": 2, "end": 0.5, "moving": False}, n_iter=2),
    )
    assert re.fullmatch(
        rf"ToDo: first pass: {share}, 4 of 4 steps \[depth 1: 8x8 tokens, keys from 4x4 \(5 layers\)\]; "
        rf"hires pass: {share}, 3 of 3 steps \[depth 1: 16x16 tokens, keys from 8x8 \(5 layers\)\]",
        comment(client, PAPER, "hires"),
    )
    passes = comment(client, {**PAPER, "passes": "hires"}, "hires")
    assert re.match(rf"ToDo: first pass: left dense, because passes = hires; hires pass: {share}", passes)
    assert "factor is 1 at this size" in comment(client, [True])
    assert "no sampling step is between start and end" in comment(client, [True, 2, 1, 0.9])


# ---- X/Y/Z


def plot(client, axes, todo=None, **request):
    """Run an X/Y/Z plot with these (axis label, values) pairs, values as text. Returns the keys of each image."""
    with client.recording() as record:
        result = client.txt2img(todo, **client.plot(*axes), **request)
    return result, record


def test_axes_are_there(client):
    names = ["Enabled", "Factor", "Max depth", "Start", "End", "Deeper factor", "Passes", "Hires factor", "Moving grid"]
    assert {f"[ToDo] {name}" for name in names} <= set(client.get("/probe/xyz_axes"))


def test_axes_act(client):
    _, record = plot(client, [("[ToDo] Factor", "1.5, 2, 4"), ("[ToDo] Enabled", "False, True")], PAPER, steps=1)
    keys = [{a.keys for a in call} for call in calls_at_depth_1(record)]
    assert keys == [{128}] * 3 + [{5 * 10}, {32}, {8}]
    _, record = plot(client, [("[ToDo] Max depth", "1, 2"), ("[ToDo] Deeper factor", "2, 3")], PAPER, steps=1)
    assert [{a.keys for a in record.attentions[i * 16 : i * 16 + 16] if a.depth == 2} for i in range(4)] == [
        {32}, {8}, {32}, {2},
    ]  # fmt: skip


def calls_at_depth_1(record):
    return [[a for a in record.attentions[i : i + 16] if a.depth == 1] for i in range(0, len(record.attentions), 16)]


def test_axes_do_not_leak_into_other_cells(client):
    _, record = plot(client, [("[ToDo] End", "0.5, 1"), ("[ToDo] Enabled", "True, False")])
    infotexts = [generation["infotexts"][0] for generation in record.generations]
    assert ["ToDo end: 0.5" in text for text in infotexts] == [True, False, False, False]
    assert ["ToDo version" in text for text in infotexts] == [True, True, False, False]


@pytest.mark.parametrize(
    ("label", "values"),
    [("Factor", "2, 9"), ("Max depth", "0"), ("Passes", "both, all"), ("Enabled", "maybe"), ("End", "1.5")],
)
def test_axes_reject_bad_values_before_anything_runs(client, label, values):
    with pytest.raises(RequestFailed, match="is not allowed"):
        plot(client, [(f"[ToDo] {label}", values)], [True])


def test_axes_while_todo_is_off(client):
    """The text under the plot says why the axes change nothing."""
    _, record = plot(client, [("[ToDo] Factor", "2, 4")], [False], steps=1)
    assert [generation["comments"] for generation in record.generations] == [
        "[ToDo] Factor: no effect while ToDo is off\n"
    ] * 2


def test_a_cell_whose_values_do_not_go_together(client):
    """The cell stays empty, and the text under the plot says why."""
    _, record = plot(client, [("[ToDo] Start", "0, 0.5"), ("[ToDo] End", "0.25, 1")], PAPER, steps=1)
    assert len(record.attentions) == 3 * 16
    hint = "cells that are not allowed stay empty (ToDo: end = 0.25 is not allowed: it must not be below start = 0.5"
    assert hint in record.generations[0]["comments"]
