"""Texts of pictures: written, parsed, and pasted into the controls of a tab."""

import json
import re

from modules import errors

paste_fields = {}  # tab -> the fields of its scripts
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
    return {"Prompt": prompt, **params}


def paste(tab, text):
    """What a paste in the browser makes of each control: its new value, or None where it is left as it is."""
    params = parse_generation_parameters(text)
    values = []
    for field in paste_fields[tab]:
        try:
            value = field.function(params)
        except Exception:
            errors.report(f"Error executing {field.function}")
            value = None
        if value is None:
            values.append(None)
            continue
        kind = type(field.component.value)
        values.append(float(value) if kind is int else kind(value))
    return values
