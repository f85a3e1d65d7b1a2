"""Infotexts: written, parsed, and pasted into the controls of a tab."""

import json
import re

from modules import errors
from modules.shared import opts

paste_fields = {}  # tab -> {"fields": the fields of its scripts}
_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


class PasteField(tuple):
    def __new__(cls, component, target, *, api=None):
        return super().__new__(cls, (component, target))

    def __init__(self, component, target, *, api=None):
        self.api = api
        self.component = component
        self.label = target if isinstance(target, str) else None
        self.function = target if callable(target) else None


def quote(value):
    return json.dumps(value) if set(str(value)) & set(",:\n") else value


def create_infotext(p):
    params = {"Steps": p.steps, "Sampler": p.sampler_name, "Seed": p.seed, **p.extra_generation_params}
    return f"{p.prompt}\n" + ", ".join(f"{key}: {quote(value)}" for key, value in params.items())


def parse_generation_parameters(text, skip_fields=None):
    prompt, _, last = text.rpartition("\n")
    params = {key: json.loads(value) if value[:1] == '"' else value for key, value in _PARAM.findall(last)}
    for key in opts.infotext_skip_pasting if skip_fields is None else skip_fields:
        params.pop(key, None)
    return {"Prompt": prompt, **params}


def get_infotext_names():
    """The choices of the option "Disregard fields from pasted infotext"."""
    return [name for tab in paste_fields.values() for _, name in tab["fields"] if isinstance(name, str)]


def paste(tab, text):
    """Paste as the browser does. Returns each control's new value, or None if the control stays as it is."""
    params = parse_generation_parameters(text)
    values = []
    for component, key in paste_fields[tab]["fields"]:
        if callable(key):
            try:
                value = key(params)
            except Exception:
                errors.report(f"Error executing {key}")
                value = None
        else:
            value = params.get(key)
        if value is None:
            values.append(None)
            continue
        kind = type(component.value)
        values.append(float(value) if kind is int else kind(value))
    return values


def send(source, target, names, values):
    """Send values to another tab, as the buttons "Send to" do. Returns (control, value) pairs of the target tab.

    names: the names of the fields that are sent.
    """
    inputs = [component for component, name in paste_fields[source]["fields"] if name in names]
    outputs = [component for component, name in paste_fields[target]["fields"] if name in names]
    return list(zip(outputs, [values[component] for component in inputs], strict=True))
