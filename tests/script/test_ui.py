"""The accordion and its controls."""

from __future__ import annotations

import json
import sys
from collections import Counter

import gradio as gr
import pytest

import todo_lib
from tests.script.extension import DEFAULTS, NAMES, SCRIPTS, importable, reload_ui

TABS = ["txt2img", "img2img"]
LABELS = [
    "ToDo · Token Downsampling",
    "Downsample factor",
    "Max depth",
    "Start",
    "End",
    "Deeper factor",
    "Hires. fix passes",
    "Factor in the hires pass",
    "Moving grid",
]
RANGES = {  # minimum, maximum, step
    "factor": (0, 8, 0.5),
    "max_depth": (1, 4, 1),
    "start": (0, 1, 0.05),
    "end": (0, 1, 0.05),
    "deeper_factor": (0, 8, 0.5),
    "hires_factor": (0, 8, 0.5),
}


@pytest.fixture(params=TABS)
def tab(request):
    return request.param


@pytest.fixture
def script(host, tab):
    return host.ui.runners()[tab].script("ToDo")


@pytest.fixture
def controls(script):
    return dict(zip(NAMES, script.controls, strict=True))


def test_title_and_place(host, script, tab):
    assert script.title() == "ToDo"
    assert script.show(tab == "img2img") is host.scripts.AlwaysVisible
    assert host.ui.runners()[tab].inputs[script.args_from : script.args_to] == script.controls
    assert script.args_from == 3  # after the dropdown and another script's two controls


def test_order_and_labels(script):
    assert [control.label for control in script.controls] == LABELS


def test_kinds(controls):
    kinds = {name: control.get_block_name() for name, control in controls.items()}
    assert kinds.pop("passes") == "radio"
    assert [kinds.pop(name) for name in ("enabled", "moving")] == ["checkbox", "checkbox"]
    assert set(kinds.values()) == {"slider"}
    assert controls["passes"].choices in (["both", "first", "hires"], [(x, x) for x in ("both", "first", "hires")])


def test_defaults_and_their_types(controls):
    """The API casts infotext values to the type of the control's value: an int would cut off halves."""
    values = [control.value for control in controls.values()]
    assert values == DEFAULTS
    assert [type(value) for value in values] == [bool, float, int, float, float, float, str, float, bool]


def test_ranges(controls):
    sliders = {name: control for name, control in controls.items() if isinstance(control, gr.Slider)}
    assert {name: (c.minimum, c.maximum, c.step) for name, c in sliders.items()} == RANGES


def test_help(controls):
    """Each control has one line of help. The accordion's line stands inside it."""
    infos = {name: control.info for name, control in controls.items() if name != "enabled"}
    assert len(set(infos.values())) == 8
    for name, info in infos.items():
        assert info and "\n" not in info and len(info) < 120, name
    accordion = controls["enabled"].accordion
    assert [type(child) for child in accordion.children[:1]] == [gr.HTML]
    assert accordion.children[0].value


def test_accordion(host, controls):
    """The accordion's own checkbox is the switch. It begins closed, with all other controls inside."""
    enabled = controls["enabled"]
    assert type(enabled).__name__ == "InputAccordion"
    assert enabled.accordion.open is False

    def blocks_in(block):
        return [block, *(inner for child in getattr(block, "children", []) for inner in blocks_in(child))]

    inside = {block._id for block in blocks_in(enabled.accordion)}
    assert {control._id for name, control in controls.items() if name != "enabled"} <= inside


def test_element_ids(controls, tab):
    """Element ids are part of the interface: other programs and styles find the controls by them."""
    ids = {name: control.elem_id for name, control in controls.items()}
    assert ids.pop("enabled") == f"script_{tab}_todo_enabled-checkbox"
    assert controls["enabled"].accordion.elem_id == f"script_{tab}_todo_enabled"
    assert ids == {name: f"script_{tab}_todo_{name}" for name in NAMES[1:]}


def test_element_ids_are_unique_on_the_page(host):
    ids = Counter(block.elem_id for block in host.page.blocks.values() if "todo" in str(block.elem_id))
    assert len(ids) == 2 * 15
    assert set(ids.values()) == {1}


def test_the_page_can_be_sent_to_a_browser(host):
    assert "script_txt2img_todo_factor" in json.dumps(host.page.get_config_file())


def test_controls_can_be_made_again(script, host, tab):
    """The host makes the controls again for the API's defaults."""
    before = [(control.elem_id, control.value) for control in script.controls]
    with importable(host), gr.Blocks():
        again = script.ui(tab == "img2img")
    assert [(control.elem_id, control.value) for control in again] == before


def test_each_control_is_restored_from_infotext(script, host, tab):
    fields = host.infotext_utils.paste_fields[tab]["fields"]
    assert [field.component for field in fields] == script.controls
    assert all(isinstance(field, host.infotext_utils.PasteField) for field in fields)


def test_a_fresh_page_makes_pictures_without_todo(host, run, tab):
    values = list(host.Api.defaults[tab])
    images, infotext, text = host.ui.generate(tab, values)
    assert len(images) == 1
    assert "ToDo" not in infotext + text


def test_values_from_the_browser(host, tab):
    """JSON does not distinguish 2 from 2.0."""
    script = host.ui.runners()[tab].script("ToDo")
    values = list(host.Api.defaults[tab])
    sent = [True, 3, 2.0, 0, 1, 2, "both", 0, False]
    values[script.args_from : script.args_to] = [
        control.preprocess(json.loads(json.dumps(value))) for control, value in zip(script.controls, sent, strict=True)
    ]
    _, infotext, text = host.ui.generate(tab, values)
    assert "ToDo downsample factor: 3, ToDo deeper factor: 2, ToDo moving grid: False" in infotext
    assert text.startswith("ToDo: ")


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_bad_values_are_told_in_the_browser(host, tab, swallowed, caplog):
    """Bad values are possible: users can type any number next to a slider."""
    script = host.ui.runners()[tab].script("ToDo")
    values = list(host.Api.defaults[tab])
    values[script.args_from : script.args_to] = [True, 9, 1, 0, 1, 2, "both", 0, True]
    images, _, text = host.ui.generate(tab, values)
    assert images == []
    assert "factor = 9" in text and "from 1 to 8" in text
    assert swallowed() == []  # the host prints all arguments and a long traceback of an error
    (record,) = [record for record in caplog.records if record.name == "ToDo"]
    assert record.getMessage() in text and record.levelname == "ERROR"


DEFAULTS_SAVED = {  # as "Settings > Defaults" saves them: a whole number without its ".0"
    "ToDo · Token Downsampling": True,
    "Downsample factor": 3,
    "Max depth": 1,
    "Start": 0,
    "End": 1,
    "Deeper factor": 2,
    "Hires. fix passes": "hires",
    "Factor in the hires pass": 4,
    "Moving grid": False,
}


@pytest.fixture
def with_defaults(host):
    reload_ui(host, **DEFAULTS_SAVED)
    yield host
    reload_ui(host)


def test_saved_defaults(with_defaults, tab):
    script = with_defaults.ui.runners()[tab].script("ToDo")
    assert [control.value for control in script.controls] == list(DEFAULTS_SAVED.values())


def test_saved_defaults_cut_nothing_off(with_defaults, tab):
    """The API casts infotext values to the type of the control's value."""
    text = "a\nSteps: 4, Seed: 1, Sampler: Euler, ToDo downsample factor: 2.5, ToDo end: 0.8, ToDo deeper factor: 1.5"
    script = with_defaults.ui.runners()[tab].script("ToDo")
    args = with_defaults.Api.script_args(tab, {}, text)[script.args_from : script.args_to]
    assert list(args) == [True, 2.5, 2, 0, 0.8, 1.5, "both", 0, True]
    assert with_defaults.infotext_utils.paste(tab, text) == list(args)


def test_send_to_the_other_tab(host):
    """The buttons "Send to" copy the controls that the script names, from the tab where the image was made."""
    runners = host.ui.runners()
    source, target = (runners[tab].script("ToDo").controls for tab in TABS)
    values = [True, 3.5, 3, 0.1, 0.8, 1.5, "first", 2.0, False]
    names = runners["txt2img"].paste_field_names
    sent = host.infotext_utils.send("txt2img", "img2img", names, dict(zip(source, values, strict=True)))
    assert sent == list(zip(target, values, strict=True))


def test_reload_ui(host, run):
    """A reload runs the scripts again, in their present version. The earlier ones no longer act."""
    former = host.todo
    reload_ui(host)
    assert host.todo is not former
    assert host.todo.FIELDS is not former.FIELDS, "todo_lib was not loaded anew"
    assert host.todo.FIELDS is host.todo.arguments.FIELDS
    job = run.txt2img({"end": 0.5})
    assert job.down == [True, True, False, False]
    labels = [option.label for option in host.xyz.axis_options]
    assert len(labels) == len(set(labels))


def test_nothing_stays_importable(host):
    """Other tests cannot import the stand-in, nor the copy of todo_lib that its scripts have loaded."""
    assert not [name for name in sys.modules if name.partition(".")[0] == "modules"]
    assert sys.modules["todo_lib"] is todo_lib
    assert host.todo.FIELDS is not todo_lib.FIELDS


def test_a_host_of_other_modules(host, caplog, monkeypatch):
    """SD.Next says one line, not a traceback, and its plot has no axes of ToDo."""
    with importable(host), monkeypatch.context() as missing:
        missing.delattr(sys.modules["modules"], "infotext_utils")
        missing.setitem(sys.modules, "modules.infotext_utils", None)
        host.scripts.load_scripts(list(map(str, SCRIPTS)))
        host.script_callbacks.before_ui_callback()
    titles = [data.script_class.__name__ for data in host.scripts.scripts_data]
    axes = [option.label for data in host.scripts.scripts_data for option in getattr(data.module, "axis_options", ())]
    reload_ui(host)
    assert "ToDoScript" not in titles and not [label for label in axes if "ToDo" in label]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "SD.Next" in record.getMessage() and "infotext_utils" in record.getMessage()
    assert record.exc_info is None


@pytest.fixture
def old_host(host, monkeypatch):
    """The stand-in as a host before 1.10, which does not call scripts before every sampling."""
    with monkeypatch.context() as older:
        older.delattr(host.scripts.Script, "process_before_every_sampling")
        reload_ui(host)
        yield host
    reload_ui(host)


def test_a_host_that_is_too_old(caplog, old_host):
    """The page and the log say that the host is too old. Nothing is done, and nothing claims otherwise."""
    (record,) = caplog.get_records("setup")
    assert "1.10" in record.getMessage() and record.levelname == "WARNING"
    assert not old_host.ui.runners()["txt2img"].script("ToDo").controls
    helps = [block.value for block in old_host.page.blocks.values() if isinstance(block, gr.HTML)]
    assert len(helps) == 2 and all("1.10" in help for help in helps)  # one in each tab
    assert not [option.label for option in old_host.xyz.axis_options if "ToDo" in option.label]
    p = old_host.processing.StableDiffusionProcessingTxt2Img()
    p.scripts, p.script_args = old_host.ui.runners()["txt2img"], (0, False, "")
    old_host.shared.state.begin()
    result = old_host.processing.process_images(p)
    assert "ToDo" not in result.info + result.comments and not caplog.records
