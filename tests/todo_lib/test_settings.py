"""The nine settings: their allowed values, and their way through API arguments and infotext."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from todo_lib import FIELDS, Settings, SettingsError, __version__
from todo_lib.grid import kept_size
from todo_lib.settings import DENSE, KEPT, KEPT_IN_MORE, WORTHWHILE, automatic_grid
from todo_lib.webui.arguments import settings_from
from todo_lib.webui.infotext import KEYS, from_infotext, to_infotext

NAMES = ["enabled", "factor", "max_depth", "start", "end", "deeper_factor", "passes", "hires_factor", "moving"]
DEFAULTS = [False, 0, 2, 0, 1, 0, "both", 0, True]

GOOD = {
    "enabled": [True, False],
    "factor": [0, 0.0, 1, 8, 1.0, 8.0, 2, 1.5, 3.14159, Fraction(5, 2), np.float64(2.5), np.float32(2.5), np.int64(3)],
    "max_depth": [1, 2, 3, 4, 2.0, np.int64(2), np.float64(3.0)],
    "start": [0, 0.0, 0.25, 1, 1e-9, -0.0],
    "end": [0, 0.5, 1, 1.0, 0.999],
    "deeper_factor": [0, 1, 8, 2, 7.5],
    "passes": ["both", "first", "hires"],
    "hires_factor": [0, 1, 8, 2.5],
    "moving": [True, False],
}
NOT_NUMBERS = [None, "2", "", True, False, [2], {}, {"factor": 2}, 2j, float("nan"), float("inf"), -float("inf")]
BAD = {
    "enabled": [None, 1, 0, "true", "", 1.0, [], {}, float("nan")],
    "factor": [*NOT_NUMBERS, 1e-9, 0.5, 0.999, 8.001, 9, -2, 1e300, 10**400],
    "max_depth": [*NOT_NUMBERS, 0, 5, -1, 1.5, 3.999, 10**400],
    "start": [*NOT_NUMBERS, -0.001, 1.001, 2],
    "end": [*NOT_NUMBERS, -0.001, 1.001, -1],
    "deeper_factor": [*NOT_NUMBERS, 0.5, 0.999, 8.5],
    "passes": [None, "", "Both", "second", "both ", 0, True, ["both"], {}, float("nan")],
    "hires_factor": [*NOT_NUMBERS, 0.5, 0.999, 8.5, -1],
    "moving": [None, 1, 0, "auto", "", 2.0, [], {}],
}
ALLOWED = {
    "enabled": "true or false",
    "factor": "0, or a number from 1 to 8",
    "max_depth": "a whole number from 1 to 4",
    "start": "a number from 0 to 1",
    "end": "a number from 0 to 1",
    "deeper_factor": "0, or a number from 1 to 8",
    "passes": "one of 'both', 'first', 'hires'",
    "hires_factor": "0, or a number from 1 to 8",
    "moving": "true or false",
}
TYPES = dict(zip(NAMES, map(type, [False, 0.0, 2, 0.0, 1.0, 0.0, "both", 0.0, True]), strict=True))


def cases(values):
    return [pytest.param(name, value, id=f"{name}={value!r:.20}") for name in NAMES for value in values[name]]


# ---- values


def test_order_and_defaults():
    assert [field.name for field in FIELDS] == NAMES
    assert [field.default for field in FIELDS] == DEFAULTS
    assert list(dataclasses.asdict(Settings()).values()) == DEFAULTS


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_good_values(name, value):
    result = getattr(Settings(**{name: value}), name)
    assert result == value
    assert type(result) is TYPES[name]
    if name != "enabled":
        position = NAMES.index(name)
        assert settings_from([True, *DEFAULTS[1:position], value]) == Settings(True, **{name: value})


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_bad_values_are_named_with_what_is_allowed(name, value):
    with pytest.raises(SettingsError) as error:
        Settings(**{name: value})
    message = str(error.value)
    assert message.startswith(f"ToDo: {name} = {value!r} ")
    assert ALLOWED[name] in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), [case for case in cases(BAD) if case.values[0] != "enabled"])
def test_bad_values_by_position_and_by_name(name, value):
    position = NAMES.index(name)
    with pytest.raises(SettingsError, match=name):
        settings_from([True, *DEFAULTS[1:position], value, *DEFAULTS[position + 1 :]])
    with pytest.raises(SettingsError, match=name):
        settings_from([{name: value}])
    assert settings_from([False, *DEFAULTS[1:position], value]) == Settings()
    assert settings_from([{"enabled": False, name: value}]) == Settings()


@pytest.mark.parametrize("value", BAD["enabled"], ids=repr)
def test_a_switch_that_is_no_boolean(value):
    """In the first place of a list it may belong to another extension. In a dictionary it cannot."""
    if not isinstance(value, dict):
        assert settings_from([value, "anything", 99]) == Settings()
    with pytest.raises(SettingsError, match="enabled"):
        settings_from([{"enabled": value}])


def test_a_settings_error_is_a_value_error():
    assert issubclass(SettingsError, ValueError)


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().factor = 3


def test_end_below_start():
    with pytest.raises(SettingsError, match=r"end = 0\.4 .*start = 0\.6"):
        Settings(enabled=True, start=0.6, end=0.4)
    assert Settings(enabled=True, start=0.6, end=0.6).start == 0.6


def test_end_below_start_does_not_matter_while_switched_off():
    assert Settings(enabled=False, start=0.6, end=0.4).end == 0.4


# ---- API arguments


def test_missing_arguments_take_their_defaults():
    assert settings_from([]) == Settings()
    assert settings_from([True]) == Settings(enabled=True)
    assert settings_from([True, 3]) == Settings(enabled=True, factor=3)
    assert settings_from((True, 3, 2, 0.1, 0.9, 1.5, "hires", 4, False)) == Settings(
        True, 3.0, 2, 0.1, 0.9, 1.5, "hires", 4.0, False
    )


def test_too_many_arguments():
    with pytest.raises(SettingsError, match="10"):
        settings_from([True, *DEFAULTS[1:], 1])
    assert settings_from([*DEFAULTS, 1]) == Settings()


def test_one_dictionary():
    expected = Settings(enabled=True, factor=3, end=0.8)
    assert settings_from([{"enabled": True, "factor": 3, "end": 0.8}]) == expected
    assert settings_from([{"factor": 3, "end": 0.8}]) == expected
    assert settings_from([{"enabled": False, "factor": 3, "end": 0.8}]) == Settings()
    assert settings_from([{}]) == Settings(enabled=True)


def test_one_dictionary_before_the_hosts_defaults():
    """The WebUI fills up short argument lists with the controls' values, so these may follow a dictionary."""
    settings = settings_from([{"enabled": True, "factor": 3, "end": 0.8}, *DEFAULTS[1:]])
    assert settings == Settings(enabled=True, factor=3, end=0.8)


@pytest.mark.parametrize("key", ["Factor", "factors", "", "ToDo factor", "steps", 3, None])
def test_unknown_keys(key):
    with pytest.raises(SettingsError) as error:
        settings_from([{"enabled": True, key: 7}])
    message = str(error.value)
    assert repr(key) in message and "7" in message
    assert all(name in message for name in NAMES)


def test_the_dictionary_is_not_changed():
    given = {"enabled": True, "max_depth": 2.0}
    settings_from([given])
    assert given == {"enabled": True, "max_depth": 2.0} and type(given["max_depth"]) is float


# ---- the description


def test_the_limits_of_the_controls():
    limits = {field.name: (field.minimum, field.maximum) for field in FIELDS if TYPES[field.name] in (int, float)}
    factors = ["factor", "deeper_factor", "hires_factor"]
    assert limits == {**dict.fromkeys(factors, (1, 8)), "max_depth": (1, 4), "start": (0, 1), "end": (0, 1)}
    steps = {field.name: field.step for field in FIELDS}
    assert [steps[name] for name in factors] == [0.5] * 3
    assert steps["max_depth"] == 1
    assert [field.name for field in FIELDS if field.zero] == factors


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_every_field_describes_itself(field):
    assert field.allowed == ALLOWED[field.name]
    assert field.label and field.help and "\n" not in field.help
    assert field.check(field.default) == field.default


def test_labels_of_the_contract():
    assert {field.name: field.label for field in FIELDS if field.name != "enabled"} == {
        "factor": "Downsample factor",
        "max_depth": "Max depth",
        "start": "Start",
        "end": "End",
        "deeper_factor": "Deeper factor",
        "passes": "Hires. fix passes",
        "hires_factor": "Factor in the hires pass",
        "moving": "Moving grid",
    }


# ---- factors and steps


GRID = (120, 240)


def kept_at(settings, grid=GRID, steps=None):
    return [settings.kept_grid(depth, grid, steps) for depth in (1, 2, 3, 4)]


def kept_by(*factors):
    return [(kept_size(GRID[0], factor), kept_size(GRID[1], factor)) for factor in factors]


def test_factors_at_a_depth():
    assert kept_at(Settings(factor=3, deeper_factor=1.5, max_depth=3)) == kept_by(3, 1.5, 1.5, 1)
    assert kept_at(Settings(factor=3, deeper_factor=6, max_depth=1)) == kept_by(3, 1, 1, 1)


@pytest.mark.parametrize(
    ("factor", "factors"),
    [
        (2, [2, 1, 1, 1]),  # the paper's factor at 1024
        (3, [3, 1.5, 1, 1]),  # 1536
        (4, [4, 2, 1, 1]),  # 2048
        (8, [8, 4, 2, 1]),
        (1, [1, 1, 1, 1]),
        (1.5, [1.5, 1, 1, 1]),
        (5, [5, 2.5, 1.25, 1]),
    ],
)
def test_deeper_factor_0_is_half_of_the_one_above(factor, factors):
    assert kept_at(Settings(factor=factor, max_depth=4)) == kept_by(*factors)
    for max_depth in (1, 2, 3):
        assert kept_at(Settings(factor=factor, max_depth=max_depth))[max_depth:] == [GRID] * (4 - max_depth)


@pytest.mark.parametrize("steps", [None, 4, 20])
def test_a_chosen_factor_does_not_depend_on_the_steps(steps):
    assert kept_at(Settings(factor=5, max_depth=4), steps=steps) == kept_by(5, 2.5, 1.25, 1)


# ---- factor 0


SIDES = st.integers(1, 1024)
STEPS = st.none() | st.integers(0, 150)


def most_keys(steps):
    """K as the documents have it."""
    if steps is None or steps > 15:
        return 40
    return 48 if steps > 10 else 64 if steps > 5 else 80


@given(st.integers(1, 4), SIDES, SIDES, STEPS)
def test_the_automatic_grid(depth, height, width, steps):
    k, tokens = most_keys(steps), height * width
    kept = automatic_grid(depth, (height, width), steps)
    assert automatic_grid(depth, (width, height), steps) == kept[::-1]
    if tokens <= k * k or (depth == 1 and tokens <= 64 * 64):
        assert kept == (height, width)
        return
    wanted = []
    for side in (height, width):
        nearest = max(8, 8 * math.floor(side * k / math.sqrt(tokens) / 8 + 0.5))
        wanted.append(min(nearest, side // 8 * 8 or side))
    assert kept == (tuple(wanted) if math.prod(wanted) <= 0.8 * tokens else (height, width))


@pytest.mark.parametrize(
    ("grid", "steps", "kept"),
    [
        ((128, 128), 20, (40, 40)),
        ((128, 128), 16, (40, 40)),
        ((128, 128), None, (40, 40)),
        ((128, 128), 15, (48, 48)),
        ((128, 128), 11, (48, 48)),
        ((128, 128), 10, (64, 64)),
        ((128, 128), 6, (64, 64)),
        ((128, 128), 5, (80, 80)),
        ((128, 128), 4, (80, 80)),
        ((80, 80), 4, (80, 80)),
        ((96, 160), 20, (32, 48)),
        ((64, 64), 20, (64, 64)),
        ((72, 64), 20, (40, 40)),
        ((72, 64), 8, (72, 64)),  # 64 x 64 would be 89 %
        ((88, 88), 4, (88, 88)),  # 80 x 80 would be 83 %
        ((7, 900), 20, (7, 456)),
        ((2048, 2048), 20, (40, 40)),
    ],
    ids=str,
)
def test_the_automatic_grid_at_depth_1(grid, steps, kept):
    assert automatic_grid(1, grid, steps) == kept


def test_a_grid_below_depth_1_is_downsampled_as_soon_as_it_is_larger():
    assert automatic_grid(2, (48, 48), 20) == (40, 40)
    assert automatic_grid(1, (48, 48), 20) == (48, 48)  # an image of this size has little to gain


def test_no_image_that_stays_dense_at_depth_1_is_downsampled_below():
    """This follows from the constants: a grid at depth 2 has at least a quarter of the tokens of the largest one."""
    assert 2 * min(*KEPT.values(), KEPT_IN_MORE) >= DENSE
    assert WORTHWHILE < 1


def test_factor_0_looks_at_each_grid():
    for grid in ((64, 64), (96, 96), (128, 128), (256, 256)):
        assert kept_at(Settings(max_depth=4), grid) == [automatic_grid(depth, grid, None) for depth in (1, 2, 3, 4)]
    assert kept_at(Settings(), (256, 256), 8) == [(64, 64)] * 2 + [(256, 256)] * 2
    assert kept_at(Settings(deeper_factor=4, max_depth=3), (256, 256)) == [(40, 40), (64, 64), (64, 64), (256, 256)]


def test_hires_pass():
    settings = Settings(True, 2, 3, 0.1, 0.9, 0, "both", 4, False)
    assert settings.for_hires_pass() == dataclasses.replace(settings, factor=4)
    assert kept_at(settings.for_hires_pass()) == kept_by(4, 2, 1, 1)
    for factor in (0, 3):
        settings = Settings(factor=factor, hires_factor=0)
        assert settings.for_hires_pass() == settings
    assert Settings(factor=0, hires_factor=1).for_hires_pass().factor == 1


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 20, 30, 50, 150])
def test_steps_in_range_at_exact_boundaries(n):
    """A range limit i / n, typed with all digits of a float, lies exactly at step i."""
    for first in range(n + 1):
        for last in range(first, n + 1, max(1, n // 7)):
            settings = Settings(enabled=True, start=first / n, end=last / n)
            assert [i for i in range(n) if settings.in_range(i / n)] == list(range(first, last))


@pytest.mark.parametrize(
    ("start", "end", "n", "steps"),
    [
        (0, 1, 4, [0, 1, 2, 3]),
        (0, 0.5, 4, [0, 1]),
        (0.5, 1, 4, [2, 3]),
        (0.3, 0.7, 10, [3, 4, 5, 6]),
        (0.15, 0.35, 20, [3, 4, 5, 6]),
        (0.1, 0.9, 3, [1, 2]),
        (0, 0, 4, []),
        (1, 1, 4, []),
        (0.99, 1, 4, []),
        (0, 0.01, 4, [0]),
    ],
)
def test_steps_in_range(start, end, n, steps):
    settings = Settings(enabled=True, start=start, end=end)
    assert [i for i in range(n) if settings.in_range(i / n)] == steps


# ---- infotext

factors = st.just(0) | st.floats(1, 8)
enabled_settings = st.builds(
    lambda ends, **others: Settings(enabled=True, start=min(ends), end=max(ends), **others),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    factor=factors,
    max_depth=st.integers(1, 4),
    deeper_factor=factors,
    passes=st.sampled_from(["both", "first", "hires"]),
    hires_factor=factors,
    moving=st.booleans(),
)


@given(enabled_settings)
def test_infotext_brings_all_settings_back(settings):
    texts = to_infotext(settings)
    json.dumps(texts)
    assert all(type(text) is str and "," not in text and ":" not in text for text in texts.values())
    assert from_infotext(texts) == settings


VERSION = {"ToDo version": __version__}


def test_infotext_of_defaults_is_short():
    assert to_infotext(Settings(enabled=True)) == {"ToDo downsample factor": "auto", **VERSION}


def test_infotext_says_what_differs():
    assert to_infotext(Settings(True, 3, 1, 0.1, 0.8, 2, "hires", 4, False)) == {
        "ToDo downsample factor": "3",
        "ToDo depths": "1",
        "ToDo start": "0.1",
        "ToDo end": "0.8",
        "ToDo deeper factor": "2",
        "ToDo passes": "hires",
        "ToDo hires factor": "4",
        "ToDo moving grid": "False",
        **VERSION,
    }


def test_infotext_keys():
    keys = ["downsample factor", "depths", "start", "end", "deeper factor", "passes", "hires factor", "moving grid"]
    assert {f"ToDo {key}" for key in [*keys, "version"]} == KEYS
    # These keys are sd-webui-token-downsampling's. A text that has them changes that extension's settings.
    assert KEYS.isdisjoint(["ToDo factor", "ToDo factor2", "ToDo disable after", "ToDo max depth"])


def test_absent_keys_mean_defaults():
    assert from_infotext({"ToDo downsample factor": "3", "Steps": "20"}) == Settings(enabled=True, factor=3)
    assert from_infotext({"ToDo end": "0.5"}) == Settings(enabled=True, end=0.5)
    assert from_infotext(VERSION) == Settings(enabled=True)


def test_a_text_without_our_keys_switches_off():
    for params in ({}, {"Steps": "20"}, {"ToDo max depth": "2", "ToDo factor2": "3", "ToDo disable after": "0.5"}):
        assert from_infotext(params) == Settings()


@pytest.mark.parametrize(
    ("legacy", "expected"),
    [
        ({"ToDo factor": "2"}, {"factor": 2, "max_depth": 1}),
        ({"ToDo factor": "3", "ToDo factor2": "1"}, {"factor": 3, "max_depth": 1}),
        ({"ToDo factor": "3", "ToDo factor2": "1.0"}, {"factor": 3, "max_depth": 1}),
        ({"ToDo factor": "3.0", "ToDo factor2": "2"}, {"factor": 3, "deeper_factor": 2, "max_depth": 2}),
        ({"ToDo factor": "4", "ToDo factor2": "1.5"}, {"factor": 4, "deeper_factor": 1.5, "max_depth": 2}),
        ({"ToDo factor": "1", "ToDo factor2": "2"}, {"factor": 1, "deeper_factor": 2, "max_depth": 2}),
        # that extension's older versions: one factor at all depths
        ({"ToDo factor": "3", "ToDo max depth": "1"}, {"factor": 3, "max_depth": 1}),
        ({"ToDo factor": "3", "ToDo max depth": "2"}, {"factor": 3, "max_depth": 2, "deeper_factor": 3}),
        ({"ToDo factor": "2", "ToDo disable after": "0.6"}, {"factor": 2, "max_depth": 1, "end": 0.6}),
        ({"ToDo factor": "2", "ToDo disable after": "1"}, {"factor": 2, "max_depth": 1}),
    ],
)
def test_texts_of_sd_webui_token_downsampling(legacy, expected):
    assert from_infotext(legacy) == Settings(enabled=True, moving=False, **expected)


def test_a_text_that_both_extensions_wrote_into():
    settings = Settings(enabled=True, factor=3, max_depth=3, deeper_factor=1.5, end=0.8)
    theirs = {"ToDo factor": "2.0", "ToDo factor2": "2.0", "ToDo disable after": "0.5"}
    for own in (settings, Settings(enabled=True)):
        assert from_infotext({**theirs, **to_infotext(own)}) == own


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"ToDo downsample factor": "two"}, "factor"),
        ({"ToDo downsample factor": "nan"}, "factor"),
        ({"ToDo downsample factor": "9"}, "factor"),
        ({"ToDo downsample factor": ""}, "factor"),
        ({"ToDo depths": "1.5"}, "max_depth"),
        ({"ToDo depths": "auto"}, "max_depth"),
        ({"ToDo start": "-1"}, "start"),
        ({"ToDo end": "inf"}, "end"),
        ({"ToDo start": "0.5", "ToDo end": "0.2"}, "end"),
        ({"ToDo passes": "none"}, "passes"),
        ({"ToDo deeper factor": "auto"}, "deeper_factor"),
        ({"ToDo hires factor": "0.5"}, "hires_factor"),
        ({"ToDo moving grid": "1"}, "moving"),
        ({"ToDo factor": "auto"}, "factor"),
        ({"ToDo factor": "2", "ToDo factor2": "x"}, "deeper_factor"),
        ({"ToDo factor": "2", "ToDo factor2": "99"}, "deeper_factor"),
        ({"ToDo factor": "2", "ToDo disable after": "late"}, "end"),
    ],
)
def test_infotext_that_cannot_be_read(params, name):
    with pytest.raises(SettingsError, match=f"ToDo: {name} = "):
        from_infotext(params)
