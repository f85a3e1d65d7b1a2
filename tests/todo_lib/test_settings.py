"""The eight settings: what they may be, and their way through API arguments and infotext."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from todo_lib import FIELDS, Settings, SettingsError
from todo_lib.webui.arguments import settings_from
from todo_lib.webui.infotext import KEYS, from_infotext, to_infotext

NAMES = ["enabled", "factor", "max_depth", "start", "end", "deeper_factor", "passes", "auto"]
DEFAULTS = [False, 2, 1, 0, 1, 2, "both", False]

GOOD = {
    "enabled": [True, False],
    "factor": [1, 8, 1.0, 8.0, 2, 1.5, 3.14159, Fraction(5, 2), np.float64(2.5), np.float32(2.5), np.int64(3)],
    "max_depth": [1, 2, 3, 4, 2.0, np.int64(2), np.float64(3.0)],
    "start": [0, 0.0, 0.25, 1, 1e-9, -0.0],
    "end": [0, 0.5, 1, 1.0, 0.999],
    "deeper_factor": [1, 8, 2, 7.5],
    "passes": ["both", "first", "hires"],
    "auto": [True, False],
}
NOT_NUMBERS = [None, "2", "", True, False, [2], {}, {"factor": 2}, 2j, float("nan"), float("inf"), -float("inf")]
BAD = {
    "enabled": [None, 1, 0, "true", "", 1.0, [], {}, float("nan")],
    "factor": [*NOT_NUMBERS, 0, 0.5, 0.999, 8.001, 9, -2, 1e300, 10**400],
    "max_depth": [*NOT_NUMBERS, 0, 5, -1, 1.5, 3.999, 10**400],
    "start": [*NOT_NUMBERS, -0.001, 1.001, 2],
    "end": [*NOT_NUMBERS, -0.001, 1.001, -1],
    "deeper_factor": [*NOT_NUMBERS, 0, 0.999, 8.5],
    "passes": [None, "", "Both", "second", "both ", 0, True, ["both"], {}, float("nan")],
    "auto": [None, 1, 0, "auto", "", 2.0, [], {}],
}
ALLOWED = {
    "enabled": "true or false",
    "factor": "a number from 1 to 8",
    "max_depth": "a whole number from 1 to 4",
    "start": "a number from 0 to 1",
    "end": "a number from 0 to 1",
    "deeper_factor": "a number from 1 to 8",
    "passes": "one of 'both', 'first', 'hires'",
    "auto": "true or false",
}
TYPES = dict(zip(NAMES, map(type, [False, 2.0, 1, 0.0, 1.0, 2.0, "both", False]), strict=True))


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
    position = NAMES.index(name)
    assert settings_from([*DEFAULTS[:position], value]) == Settings(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_bad_values_are_named_with_what_is_allowed(name, value):
    with pytest.raises(SettingsError) as error:
        Settings(**{name: value})
    message = str(error.value)
    assert message.startswith(f"ToDo: {name} = {value!r} ")
    assert ALLOWED[name] in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_bad_values_by_position_and_by_name(name, value):
    position = NAMES.index(name)
    if not (name == "enabled" and isinstance(value, dict)):  # there a dictionary names the settings
        with pytest.raises(SettingsError, match=name):
            settings_from([*DEFAULTS[:position], value, *DEFAULTS[position + 1 :]])
    with pytest.raises(SettingsError, match=name):
        settings_from([{name: value}])


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
    assert settings_from((True, 3, 2, 0.1, 0.9, 1.5, "hires", True)) == Settings(
        True, 3.0, 2, 0.1, 0.9, 1.5, "hires", True
    )


def test_too_many_arguments():
    with pytest.raises(SettingsError, match="9"):
        settings_from([*DEFAULTS, 1])


def test_one_dictionary():
    settings = settings_from([{"enabled": True, "factor": 3, "end": 0.8}])
    assert settings == Settings(enabled=True, factor=3, end=0.8)
    assert settings_from([{}]) == Settings()


def test_one_dictionary_before_the_hosts_defaults():
    """The WebUI fills up short argument lists with the controls' values."""
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
    assert limits == {
        "factor": (1, 8),
        "max_depth": (1, 4),
        "start": (0, 1),
        "end": (0, 1),
        "deeper_factor": (1, 8),
    }
    steps = {field.name: field.step for field in FIELDS}
    assert steps["factor"] == steps["deeper_factor"] == 0.5
    assert steps["max_depth"] == 1


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_every_field_describes_itself(field):
    assert field.allowed == ALLOWED[field.name]
    assert field.label and field.help and "\n" not in field.help
    assert field.check(field.default) == field.default


def test_labels_of_the_contract():
    assert {field.name: field.label for field in FIELDS if field.name != "enabled"} == {
        "factor": "Downsample factor",
        "max_depth": "Max depth",
        "start": "Start step",
        "end": "End step",
        "deeper_factor": "Deeper factor",
        "passes": "Hires. fix passes",
        "auto": "Auto factor",
    }


# ---- factors and steps


def test_factor_at_a_depth():
    settings = Settings(factor=3, deeper_factor=1.5, max_depth=3)
    assert [settings.factor_at(depth, (64, 64)) for depth in (1, 2, 3, 4)] == [3, 1.5, 1.5, 1]


@pytest.mark.parametrize(
    ("grid", "factors"),
    [
        ((64, 64), [1, 1, 1, 1]),
        ((128, 128), [2, 1, 1, 1]),  # SD 1.x at 1024
        ((192, 192), [3, 1.5, 1, 1]),  # 1536
        ((256, 256), [4, 2, 1, 1]),  # 2048
        ((512, 512), [8, 4, 2, 1]),
        ((1024, 1024), [8, 4, 2, 1]),  # never above 8
        ((160, 160), [2.5, 1.25, 1, 1]),
        ((96, 64), [1, 1, 1, 1]),  # 1.22 is nearer to 1
        ((112, 64), [1.5, 1, 1, 1]),  # 1.32 is nearer to 1.5
        ((80, 80), [1.5, 1, 1, 1]),  # 1.25 lies between: upwards
        ((1, 1), [1, 1, 1, 1]),
    ],
)
def test_auto_factors(grid, factors):
    settings = Settings(auto=True, factor=7, deeper_factor=7, max_depth=4)
    assert [settings.factor_at(depth, grid) for depth in (1, 2, 3, 4)] == factors


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 4))
def test_auto_factor_is_the_nearest_half(height, width, max_depth):
    settings = Settings(auto=True, max_depth=max_depth)
    ideal = math.sqrt(height * width / 4096)
    top = settings.factor_at(1, (height, width))
    assert top * 2 == int(top * 2) and 1 <= top <= 8
    assert abs(top - min(8, max(1, ideal))) <= 0.25
    for depth in range(2, 5):
        expected = max(1, settings.factor_at(depth - 1, (height, width)) / 2) if depth <= max_depth else 1
        assert settings.factor_at(depth, (height, width)) == expected


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 20, 30, 50, 150])
def test_steps_in_range_at_exact_boundaries(n):
    """A fraction i / n that is typed with as many digits as a number has begins and ends exactly at step i."""
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

enabled_settings = st.builds(
    lambda ends, **others: Settings(enabled=True, start=min(ends), end=max(ends), **others),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    factor=st.floats(1, 8),
    max_depth=st.integers(1, 4),
    deeper_factor=st.floats(1, 8),
    passes=st.sampled_from(["both", "first", "hires"]),
    auto=st.booleans(),
)


@given(enabled_settings)
def test_infotext_brings_all_settings_back(settings):
    texts = to_infotext(settings)
    json.dumps(texts)
    assert all(type(text) is str and "," not in text and ":" not in text for text in texts.values())
    factor = 2.0 if settings.auto else settings.factor  # with auto it is unused, and not written
    assert from_infotext(texts) == dataclasses.replace(settings, factor=factor)


def test_infotext_of_defaults_is_short():
    assert to_infotext(Settings(enabled=True)) == {"ToDo factor": "2", "ToDo max depth": "1"}


def test_infotext_says_what_differs_or_matters():
    assert to_infotext(Settings(True, 3, 2, 0.1, 0.8, 2, "hires")) == {
        "ToDo factor": "3",
        "ToDo max depth": "2",
        "ToDo start": "0.1",
        "ToDo end": "0.8",
        "ToDo deeper factor": "2",
        "ToDo passes": "hires",
    }
    assert to_infotext(Settings(True, 1.5, deeper_factor=3))["ToDo deeper factor"] == "3"
    assert to_infotext(Settings(True, auto=True)) == {"ToDo factor": "auto", "ToDo max depth": "1"}


def test_infotext_keys():
    assert set(KEYS) == {
        "ToDo factor",
        "ToDo max depth",
        "ToDo deeper factor",
        "ToDo start",
        "ToDo end",
        "ToDo passes",
    }


def test_absent_keys_mean_defaults():
    assert from_infotext({"ToDo factor": "3", "Steps": "20"}) == Settings(enabled=True, factor=3)


def test_a_text_without_factor_switches_off():
    for params in ({}, {"Steps": "20"}, {"ToDo max depth": "2", "ToDo end": "0.5", "ToDo factor2": "3"}):
        assert from_infotext(params) == Settings()


@pytest.mark.parametrize(
    ("legacy", "expected"),
    [
        ({"ToDo factor": "2"}, {"factor": 2}),
        ({"ToDo factor": "3", "ToDo factor2": "1"}, {"factor": 3}),
        ({"ToDo factor": "3", "ToDo factor2": "1.0"}, {"factor": 3}),
        ({"ToDo factor": "3.0", "ToDo factor2": "2"}, {"factor": 3, "deeper_factor": 2, "max_depth": 2}),
        ({"ToDo factor": "4", "ToDo factor2": "1.5"}, {"factor": 4, "deeper_factor": 1.5, "max_depth": 2}),
        ({"ToDo factor": "2", "ToDo disable after": "0.6"}, {"factor": 2, "end": 0.6}),
        ({"ToDo factor": "2", "ToDo disable after": "1"}, {"factor": 2}),
    ],
)
def test_texts_of_the_older_extension(legacy, expected):
    assert from_infotext(legacy) == Settings(enabled=True, **expected)


def test_a_text_that_both_extensions_wrote_into():
    settings = Settings(enabled=True, factor=3, max_depth=3, deeper_factor=1.5, end=0.8)
    for own in (settings, Settings(enabled=True)):
        theirs = {"ToDo factor2": "2.0", "ToDo disable after": "0.5"}
        assert from_infotext({**theirs, **to_infotext(own)}) == own


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"ToDo factor": "two"}, "factor"),
        ({"ToDo factor": "nan"}, "factor"),
        ({"ToDo factor": "9"}, "factor"),
        ({"ToDo factor": ""}, "factor"),
        ({"ToDo factor": "2", "ToDo max depth": "1.5"}, "max_depth"),
        ({"ToDo factor": "2", "ToDo max depth": "auto"}, "max_depth"),
        ({"ToDo factor": "2", "ToDo start": "-1"}, "start"),
        ({"ToDo factor": "2", "ToDo end": "inf"}, "end"),
        ({"ToDo factor": "2", "ToDo start": "0.5", "ToDo end": "0.2"}, "end"),
        ({"ToDo factor": "2", "ToDo passes": "none"}, "passes"),
        ({"ToDo factor": "2", "ToDo factor2": "x"}, "deeper_factor"),
        ({"ToDo factor": "2", "ToDo factor2": "99"}, "deeper_factor"),
        ({"ToDo factor": "2", "ToDo disable after": "late"}, "end"),
    ],
)
def test_infotext_that_cannot_be_read(params, name):
    with pytest.raises(SettingsError, match=f"ToDo: {name} = "):
        from_infotext(params)
