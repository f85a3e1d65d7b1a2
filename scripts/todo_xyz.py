"""X/Y/Z plot axes for the settings of ToDo."""

import functools

from modules import script_callbacks, scripts

from todo_lib import FIELDS


def add_axes():
    xyz_grid = next(data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py")
    xyz_grid.axis_options += [_axis(xyz_grid, index, field) for index, field in enumerate(FIELDS)]


def _axis(xyz_grid, index, field):
    label = f"[ToDo] {field.name.replace('_', ' ').capitalize()}"
    kind = type(field.default)
    choices = functools.partial(list, field.choices) if field.choices else None
    if kind is bool:
        kind, choices = str, lambda: ["False", "True"]

    def value_of(x):
        if isinstance(field.default, bool):
            return {"True": True, "False": False}.get(x, x)
        return round(x, 8) if isinstance(x, float) else x  # as the host writes it beside the plot: 0.1 + 0.2 is 0.3

    def confirm(p, xs):
        for x in xs:
            field.check(value_of(x))

    def apply(p, x, xs):
        """Set the script's positional argument, as if the control stood at this value."""
        script = next(script for script in p.scripts.alwayson_scripts if script.title() == "ToDo")
        args = list(p.script_args)
        first = args[script.args_from]
        if isinstance(first, dict):
            args[script.args_from] = {**first, field.name: value_of(x)}
        else:
            args[script.args_from + index] = value_of(x)
        p.script_args = args

    return xyz_grid.AxisOption(label, kind, apply, confirm=confirm, choices=choices)


if hasattr(scripts.Script, "process_before_every_sampling"):  # older hosts have no controls of ToDo to set
    script_callbacks.on_before_ui(add_axes)
