"""The translations that the host puts in the place of texts: they cover all that people see, and nothing else."""

from __future__ import annotations

import ast
import json
import re

import pytest

from tests.script.extension import ROOT
from todo_lib import FIELDS

FILES = sorted((ROOT / "localizations").glob("*.json"))
WITH_TEXTS = ("todo_lib/webui/script.py", "todo_lib/webui/live_plan.py", "todo_lib/webui/plan_view.py")
WITH_TEXTS += ("todo_lib/webui/measured.py",)
MADE_OF_PARTS = {"first pass", "hires pass", "first pass:", "hires pass:"}
OTHERS = {"Use same sampler", "Use same scheduler", "Use same checkpoint", "Automatic"}  # the host's own words
TAG = re.compile(r"<[^<>]*(>|$)|^[^<>]*>")  # also one that is cut off by a value


def is_text(words):
    """Whether people read this, and not a program: words with a space, or with a capital or a tag around them."""
    return bool(re.search("[a-z]", words)) and bool(re.search(r"[a-z] |^[A-Z][a-z]+$", words))


def is_logging(node):
    """Whether this is a call that writes into the log, which stays English."""
    return isinstance(node, ast.Call) and re.match(r"logger\.|_tell_once$", ast.unparse(node.func))


def texts_of(path):
    """The texts in the strings of this file that are not documentation."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
    }
    logged = {id(inner) for node in ast.walk(tree) if is_logging(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation | logged:
            in_tags = re.findall(r">([^<>]*[a-z][^<>]*)<", node.value)
            yield from in_tags or filter(is_text, [TAG.sub("", node.value).strip()])


@pytest.fixture(scope="module")
def texts():
    """All that people see in the accordion."""
    of_controls = {text for field in FIELDS for text in (field.label, field.help, *field.choices)}
    return of_controls | {text for path in WITH_TEXTS for text in texts_of(path)} - OTHERS | MADE_OF_PARTS


def test_the_texts_are_found(texts):
    assert {"More settings", "Keys from", "all", "Worth it at this size.", "both", "Moving grid"} <= texts


def test_there_are_translations():
    assert [file.name for file in FILES] == ["de_DE.json", "ja_JP.json"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_text_is_translated(file, texts):
    translated = json.loads(file.read_text(encoding="utf-8"))
    assert set(translated) == texts
    assert all(translated.values())
