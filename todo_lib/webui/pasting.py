"""The controls and an image's infotext: pasted, sent to another tab, disregarded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from modules import infotext_utils, shared

from ..settings import FIELDS, Field, SettingsError, Value
from .arguments import Refusal
from .infotext import THEIR_FACTOR, from_infotext

SWITCH = FIELDS[0]


class Label(str):
    """The name of a control's infotext, by which the host knows it, and the functions that read its value.

    The host lists these names, and copies controls of one name from tab to tab. It calls a name to paste, if it can.
    """

    def __call__(self, params: Mapping[str, Any]) -> Value | None:
        """The control's value after this parsed infotext is pasted; None where it stays as it is.

        A text that cannot be read switches ToDo off, and all other controls stay. Not every host would get over an
        error here. So the switch warns people, once for all controls.
        """
        try:
            return _pasted(_BY_LABEL[self], params)
        except SettingsError as error:
            if _BY_LABEL[self] is not SWITCH:
                return None
            gr.Warning(str(error))
            return False

    def for_api(self, params: Mapping[str, Any]) -> Value | None:
        """The same for the field `infotext` of an API request. A text that cannot be read is refused."""
        try:
            return _pasted(_BY_LABEL[self], params)
        except SettingsError as error:
            raise Refusal(str(error)) from error


_BY_LABEL: dict[str, Field] = {field.infotext or "ToDo": field for field in FIELDS}

LABELS = tuple(map(Label, _BY_LABEL))
"""The labels of all controls, in order."""


def paste_fields(controls: Sequence[Any]) -> list[Any]:
    """The host's fields for pasting into these controls, which have the order of `LABELS`."""
    fields = [infotext_utils.PasteField(*pair) for pair in zip(controls, LABELS, strict=True)]
    for field, label in zip(fields, LABELS, strict=True):
        field.function = label.for_api  # the API calls this, and pasting calls the label
    return fields


def keep_fractions(fields: Iterable[Any]) -> None:
    """Let the sliders for fractions among these paste fields of a tab have a float as their value.

    "Settings > Defaults" saves 3.0 as 3, and the API casts what it reads from an infotext to the type of the value.
    """
    for component, label in fields:
        if isinstance(label, Label) and isinstance(_BY_LABEL[label].default, float):
            component.value = float(component.value)


def _pasted(field: Field, params: Mapping[str, Any]) -> Value | None:
    disregarded = shared.opts.infotext_skip_pasting  # the host has dropped their keys from params
    if LABELS[0] in disregarded:
        return None
    if any(option.infotext == THEIR_FACTOR for option in shared.opts.data_labels.values()):
        # sd-webui-token-downsampling is here, and the host restores its options from its keys. Both would be on.
        params = {key: value for key, value in params.items() if key != THEIR_FACTOR}
    settings = from_infotext(params)
    return None if (field.infotext in disregarded) else getattr(settings, field.name)
