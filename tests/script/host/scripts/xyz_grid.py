"""The plot of a job over values of up to three axes."""

from copy import copy

import numpy as np
from modules import errors, scripts
from modules.processing import process_images


def format_value_add_label(p, opt, x):
    return f"{opt.label}: {x}"


class AxisOption:
    def __init__(self, label, type, apply, format_value=format_value_add_label, confirm=None, cost=0.0, choices=None):
        self.label = label
        self.type = type
        self.apply = apply
        self.format_value = format_value
        self.confirm = confirm
        self.choices = choices


def apply_field(name):
    return lambda p, x, xs: setattr(p, name, x)


axis_options = [
    AxisOption("Nothing", str, lambda p, x, xs: None),
    AxisOption("Steps", int, apply_field("steps")),
    AxisOption("Hires steps", int, apply_field("hr_second_pass_steps")),
]


class Script(scripts.Script):
    def title(self):
        return "X/Y/Z plot"


shown = []  # the result that the page shows for each plot: a copy of its first one, with all images


def option(label):
    return next(option for option in axis_options if option.label == label)


def axis_values(option, text):
    """Read the values in a user's text. Commas separate them; numbers may be ranges "start-end (+step)"."""
    values = []
    for part in text.split(","):
        part = part.strip()
        if option.type is float and " (+" in part:
            bounds, step = part.rstrip(")").split(" (+")
            start, end = map(float, bounds.split("-"))
            values += np.arange(start, end + float(step), float(step)).tolist()
        else:
            values.append(option.type(part))
    return values


def plot(p, *axes):
    """Run a job for each combination of values. axes: (label, text of values). Returns the results in order."""
    axes = [(option(label), axis_values(option(label), text)) for label, text in axes]
    for axis, xs in axes:
        if axis.confirm:
            axis.confirm(p, xs)
    for axis, xs in axes:
        for x in xs:
            axis.format_value(p, axis, x)
    cells = [()]
    for axis, xs in axes:
        cells = [(*cell, (axis, x, xs)) for cell in cells for x in xs]
    results = []
    for cell in cells:
        pc = copy(p)  # a shallow copy: the cells share the job's dictionaries
        for axis, x, xs in cell:
            axis.apply(pc, x, xs)
        try:
            results.append(process_images(pc))
            if len(results) == 1:
                shown.append(copy(results[0]))
        except Exception:
            errors.report("generating image for xyz plot")
            results.append(None)
    return results
