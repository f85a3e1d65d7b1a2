"""CLIP's way of cutting prompts into tokens, with a vocabulary of its own.

CLIP's has 49,408 tokens, which would be most of a model this small. This one has all bytes, so that it reads any text,
and merges that make one token of each word of the captions. Its files are those that transformers' CLIPTokenizer reads.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from lab.model.parts import PROMPT_TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's pattern, with what Python's re has in place of \p{L} and \p{N}.
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


class Tokenizer:
    """Cuts prompts into tokens.

    vocabulary: token -> its number.
    ranks: pair of neighbours that is merged -> its place in the order of merges.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]):
        self.vocabulary, self.ranks = vocabulary, {pair: rank for rank, pair in enumerate(merges)}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read vocab.json and merges.txt."""
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
        return cls(vocabulary, [tuple(line.split()) for line in lines if line])

    @classmethod
    def train(cls, texts: Iterable[str]) -> Tokenizer:
        """Merge the most frequent pair of neighbours until each word of the texts is one token."""
        words = [_characters(word) for word in dict.fromkeys(w for text in texts for w in _pieces(text))]
        merges = []
        while any(len(word) > 1 for word in words):
            pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
            merges.append(pairs.most_common(1)[0][0])
            words = [_merged(word, merges[-1]) for word in words]
        characters = list(_byte_characters().values())
        tokens = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges), START, END]
        return cls({token: i for i, token in enumerate(tokens)}, merges)

    def save(self, folder: Path) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.ranks), ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": PROMPT_TOKENS}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Token numbers (B, 77): start, tokens, and ends as padding. Longer texts are cut."""
        start, end = self.vocabulary[START], self.vocabulary[END]
        rows = []
        for text in texts:
            tokens = [self.vocabulary[token] for word in _pieces(text) for token in self._split(word)]
            tokens = [start, *tokens[: PROMPT_TOKENS - 2]]
            rows.append(tokens + [end] * (PROMPT_TOKENS - len(tokens)))
        return torch.tensor(rows)

    def _split(self, word: str) -> list[str]:
        parts = _characters(word)
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            parts = _merged(parts, best)
        return parts


def _pieces(text: str) -> list[str]:
    return PIECES.findall(text.lower())


def _characters(word: str) -> list[str]:
    characters = [_byte_characters()[byte] for byte in word.encode()]
    characters[-1] += "</w>"
    return characters


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    result, i = [], 0
    while i < len(parts):
        together = tuple(parts[i : i + 2]) == pair
        result.append("".join(pair) if together else parts[i])
        i += 2 if together else 1
    return result


@functools.cache
def _byte_characters() -> dict[int, str]:
    """A visible character for each byte: its own where it has one, else one from 256 on."""
    own = {b: chr(b) for r in (range(33, 127), range(161, 173), range(174, 256)) for b in r}
    others = [byte for byte in range(256) if byte not in own]
    return own | {byte: chr(256 + i) for i, byte in enumerate(others)}
