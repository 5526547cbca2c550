"""What the fuzzer found worth keeping, and the same check on what hypothesis makes up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import fuzz_protocol
from .fuzz_protocol import START, pack

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
SEEDS = fuzz_protocol.seeds()
UNHURRIED = settings(deadline=None)
"""A deadline that a busy machine misses says nothing about the codec."""


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name[:8])
def test_corpus(path):
    fuzz_protocol.run(path.read_bytes())


def test_the_corpus_reaches_every_end():
    assert {fuzz_protocol.run(path.read_bytes()) for path in CORPUS} >= {"decode", "fit", "encode", "answered"}


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_seeds_are_answered(number):
    assert fuzz_protocol.run(SEEDS[number]) == "answered"


@given(st.integers(0, 255), st.integers(-3, 100), st.binary())
@UNHURRIED
def test_arbitrary_bytes(which, length, body):
    fuzz_protocol.run(START.pack(which, length) + body)


@given(st.sampled_from(SEEDS), st.data())
@UNHURRIED
def test_damaged_requests(seed, data):
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(seed)), st.integers(0, len(seed)))))
    fuzz_protocol.run(seed[:start] + data.draw(st.binary(max_size=8)) + seed[end:])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(fuzz_protocol.VALUES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=300, deadline=None)
def test_any_json_in_any_place(seed, data):
    which, length = START.unpack_from(seed)
    body = seed[START.size :]
    cut = len(body) if length < 0 else length
    header = json.loads(body[:cut])
    place, key = header, data.draw(st.sampled_from(list(header)))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(json_values)
    fuzz_protocol.run(pack(which, header, body[cut:]))
