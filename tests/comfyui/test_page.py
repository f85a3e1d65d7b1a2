"""ComfyUI's page in a headless Chromium: the node is added, runs, and says on itself what was done."""

import json
from urllib.parse import urlsplit

import pytest
import requests

from tests.servers import REPOSITORY

pytestmark = pytest.mark.slow

EXAMPLE = REPOSITORY / "example_workflows" / "hires_fix_1024_to_2048.json"
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types.ToDoTokenDownsampling"
NODE = "app.graph._nodes.find(node => node.type == 'ToDoTokenDownsampling')"
SMALL = {  # the example's widgets -> values with which it runs here, and quickly
    "CheckpointLoaderSimple": {0: "tinyxl.safetensors"},
    "EmptyLatentImage": {0: 256, 1: 256},
    "KSampler": {2: 3},
    "ToDoTokenDownsampling": {0: 2},
}


@pytest.fixture
def page(comfyui, browser):
    """ComfyUI's page. Requests to other machines are refused."""
    requests.post(f"{comfyui.url}/settings/Comfy.TutorialCompleted", json=True, timeout=60).raise_for_status()
    host = urlsplit(comfyui.url).netloc
    context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
    context.route(lambda address: urlsplit(address).netloc != host, lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(240000)
    page.goto(comfyui.url, wait_until="domcontentloaded")
    page.wait_for_function(READY)
    yield page
    context.close()


def test_a_node_that_is_added_has_the_settings_with_their_defaults(page):
    page.evaluate("app.graph.add(LiteGraph.createNode('ToDoTokenDownsampling'))")
    widgets = page.evaluate(f"{NODE}.widgets.map(widget => [widget.name, widget.value])")
    names = ["factor", "max_depth", "start", "end", "deeper_factor", "moving"]
    assert widgets == [list(pair) for pair in zip(names, [0, 2, 0, 1, 0, True], strict=True)]


def test_the_example_runs_and_the_node_says_what_was_done(page):
    workflow = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        for place, value in SMALL.get(node["type"], {}).items():
            node["widgets_values"][place] = value
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.evaluate("() => app.queuePrompt(0, 1)")
    text = page.wait_for_function(
        f"() => {{ const text = {NODE}.widgets.at(-1).value; return /32x32 tokens/.test(text) && text }}"
    ).json_value()
    first, second = text.split("\n")
    assert "3 of 3 steps" in first and "16x16 tokens, keys from 8x8" in first
    assert "3 of 3 steps" in second and "32x32 tokens, keys from 16x16" in second


def test_the_example_is_offered_as_a_template(comfyui):
    templates = requests.get(f"{comfyui.url}/workflow_templates", timeout=60).json()
    assert templates["sd-webui-todo"] == [EXAMPLE.stem]
