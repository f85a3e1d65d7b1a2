"""The node in a real ComfyUI: keys, pictures, and what is left behind, seen by a probe that knows nothing of ToDo."""

import pytest

from tests.comfyui.client import Refused, Workflow

WHOLE, KEPT = 16 * 8, 8 * 4  # tokens of depth 1 at 128x64 pixels, and the keys that a factor of 2 keeps of them


def keys(call, queries=WHOLE):
    """The numbers of keys and values that the U-Net's self-attentions with so many queries had in a call."""
    return {(k, v) for name, _, q, k, v in call["attention"] if q == queries and not name.startswith("control")}


def one(client, build, checkpoint="tiny", **inputs):
    """The probe's report on one sampling with the model that build(workflow, model) gives."""
    workflow = Workflow()
    model, clip, _ = workflow.watched(checkpoint)
    model = build(workflow, model)
    workflow.report(model, workflow.sample(model, *workflow.prompts(clip), **inputs))
    (report,) = client.reports(workflow)
    return report


def dense(workflow, model):
    return model


def downsampled(**settings):
    return lambda workflow, model: workflow.todo(model, **settings)


@pytest.fixture
def plain(client):
    return one(client, dense)


@pytest.mark.parametrize(("checkpoint", "halvings"), [("tiny", 0), ("tinyxl", 1)])
def test_the_paper_s_grid_is_that_of_a_second_implementation(client, checkpoint, halvings):
    ours = one(client, downsampled(), checkpoint)
    reference = one(client, lambda w, m: w.add("ProbeReference", model=m, factor=2, halvings=halvings), checkpoint)
    assert ours["finite"] and ours["hash"] == reference["hash"] != one(client, dense, checkpoint)["hash"]


def test_each_step_has_the_kept_keys_and_the_same_workflow_gives_the_same_picture(client, plain):
    first, second = (one(client, downsampled(moving=True)) for _ in range(2))
    assert [call["step"] for call in first["calls"]] == [0, 1, 2, 3]
    assert all(keys(call) == {(KEPT, KEPT)} for call in first["calls"])
    assert first["hash"] == second["hash"] != plain["hash"]


def test_the_moving_grid_moves(client):
    assert one(client, downsampled(moving=True))["hash"] != one(client, downsampled())["hash"]


def test_a_factor_of_1_is_the_picture_without_the_node(client, plain):
    assert one(client, downsampled(factor=1))["hash"] == plain["hash"]


def test_nothing_is_left(client, plain):
    after = one(client, downsampled())
    assert after["fingerprint"] == plain["fingerprint"]
    assert one(client, dense)["hash"] == plain["hash"]


def test_nothing_of_ours_is_put_where_others_look(client):
    report = one(client, downsampled())
    assert report["modules"] == [] and report["path"] == []


def test_the_node_leaves_its_input_alone(client, plain):
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    workflow.todo(model)
    workflow.report(model, workflow.sample(model, *workflow.prompts(clip)))
    assert client.reports(workflow)[0]["hash"] == plain["hash"]


def test_a_second_node_replaces_the_first(client):
    report = one(client, lambda w, m: w.todo(w.todo(m, factor=4, max_depth=2), factor=2))
    assert report["hash"] == one(client, downsampled(factor=2))["hash"]


def test_branches_have_settings_of_their_own(client):
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    branches = [workflow.todo(model, factor=2), model, workflow.todo(model, factor=4)]
    latents = [workflow.sample(branch, *workflow.prompts(clip)) for branch in branches]
    for latent in latents:
        workflow.report(model, latent)
    hashes = [report["hash"] for report in client.reports(workflow)]
    assert hashes == [one(client, build)["hash"] for build in (downsampled(factor=2), dense, downsampled(factor=4))]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factor": 0.5}, ("factor = 0.5", "0, or a number from 1 to 8")),
        ({"start": 0.6, "end": 0.5}, ("end = 0.5", "start = 0.6")),
        ({"max_depth": 5}, ("max_depth = 5", "a whole number from 1 to 4")),
    ],
)
def test_values_that_are_not_allowed_are_refused_before_anything_runs(client, settings, words):
    with pytest.raises(Refused) as refused:
        one(client, downsampled(**settings))
    assert all(word in str(refused.value) for word in words)
    assert one(client, downsampled())["finite"]


def test_the_line_is_on_the_node_and_in_the_log(client, comfyui):
    position = comfyui.log_size()
    report = one(client, downsampled(end=0.5))
    ((_, text),) = report["texts"]
    assert "2 of 4 steps" in text and "16x8 tokens, keys from 8x4" in text
    assert f"ToDo: {text}" in comfyui.log_since(position)


def test_all_samplings_of_a_run_are_on_the_node(client):
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    model = workflow.todo(model)
    texts = workflow.prompts(clip)
    first = workflow.sample(model, *texts)
    latent = workflow.sample(model, *texts, first, denoise=0.5)
    large = workflow.add("LatentUpscaleBy", samples=latent, upscale_method="bilinear", scale_by=2.0)
    workflow.report(model, workflow.sample(model, *texts, large, denoise=0.5))
    for _ in range(2):  # the second run begins anew, though the node itself does not run again
        report = client.reports(workflow)[0]
        _, text = report["texts"][-1]
        lines = text.split("\n")
        assert len(lines) == 2 and lines[0].startswith("2 samplings: ") and "32x16 tokens" in lines[1]
        workflow.nodes[first.number]["inputs"]["seed"] += 1


def test_auto_leaves_a_small_picture_dense_and_says_why(client, plain):
    report = one(client, downsampled(factor=0, max_depth=2))
    assert report["hash"] == plain["hash"]
    assert "nothing downsampled" in report["texts"][-1][1]


def test_calls_by_other_hands_stay_dense(client):
    """A node calls the same U-Net with another model's options, in the midst of a step."""
    report = one(client, lambda w, m: w.add("ProbeOther", model=w.todo(m), other=m))
    ours = [call for call in report["calls"] if call["step"] != "other"]
    others = [call for call in report["calls"] if call["step"] == "other"]
    assert len(ours) == len(others) == 4
    assert all(keys(call) == {(KEPT, KEPT)} for call in ours)
    assert all(keys(call) == {(WHOLE, WHOLE)} for call in others)
    assert report["hash"] == one(client, downsampled())["hash"]
