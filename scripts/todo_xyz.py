"""X/Y/Z plot axes for the settings of ToDo."""

import functools

from modules import script_callbacks, scripts

from todo_lib import FIELDS, Settings, SettingsError
from todo_lib.webui.arguments import values_by_name
from todo_lib.webui.hosts import arguments_of, is_too_old, place_of_arguments


def add_axes():
    """Add the axes to the host's plot, in the place of earlier ones. A plot that is switched off has none."""
    if not any(data.script_class.__name__ == "ToDoScript" for data in scripts.scripts_data):
        return  # a host in which ToDo does nothing
    labels = {_label(field.name) for field in FIELDS}
    for plot in [data.module for data in scripts.scripts_data if _is_plot(data.module)]:
        others = [option for option in plot.axis_options if option.label not in labels]
        plot.axis_options[:] = [*others, *(_axis(plot, field) for field in FIELDS)]


def _is_plot(module):
    """Whether this is the module of the script "X/Y/Z plot", whose name differs from host to host."""
    return hasattr(module, "axis_options") and hasattr(module, "AxisOption")


def _axis(xyz_grid, field):
    kind = type(field.default)
    choices = functools.partial(list, field.choices) if field.choices else None
    if kind is bool:
        kind, choices = str, lambda: ["False", "True"]

    def confirm(p, xs):
        for x in xs:
            field.check(_value_of(field, x))
        # Copies of p share this dictionary, and the later axes add to it.
        vars(p).setdefault("todo_axes", {})[field.name] = [_value_of(field, x) for x in xs]

    def apply(p, x, xs):
        """Set the script's positional argument, as if the control stood at this value."""
        first = place_of_arguments(p).start
        args = list(p.script_args)
        if isinstance(args[first], dict):
            args[first] = {**args[first], field.name: _value_of(field, x)}
        else:
            args[first + FIELDS.index(field)] = _value_of(field, x)
        p.script_args = args

    option = xyz_grid.AxisOption(_label(field.name), kind, apply, confirm=confirm, choices=choices)
    label_value = option.format_value

    def format_value(p, opt, x):
        # The host asks for this when all axes are confirmed, and before the first cell.
        for text in _hints(p):
            p.comment(text)
        return label_value(p, opt, x)

    option.format_value = format_value
    return option


def _label(name):
    return "[ToDo] Moving grid" if name == "moving" else f"[ToDo] {name.replace('_', ' ').capitalize()}"


def _value_of(field, x):
    """The setting's value for this value of the axis."""
    if isinstance(field.default, bool):
        return {"True": True, "False": False}.get(x, x)
    return round(x, 8) if isinstance(x, float) else x  # as the host writes it beside the plot: 0.1 + 0.2 is 0.3


def _hints(p):
    """Yield hints that hold for a whole plot with these axes, whichever of its cells people look at."""
    axes = p.todo_axes
    values = {field.name: field.default for field in FIELDS} | values_by_name(arguments_of(p))
    names = ", ".join(map(_label, axes))
    if not (values["enabled"] or "enabled" in axes):
        yield f"{names}: no effect while ToDo is off"
        return
    start, end = max(axes.get("start", [values["start"]])), min(axes.get("end", [values["end"]]))
    try:
        Settings(enabled=True, start=start, end=end)
    except SettingsError as error:
        yield f"{names}: cells that are not allowed stay empty ({error})"


if not is_too_old(scripts.Script):  # older hosts have no controls of ToDo to set
    add_axes()  # now, as with --nowebui the host makes the plot's list of axes before the next callback
    script_callbacks.on_before_ui(add_axes)  # for a plot that is loaded later
