"""Values that ranks tell each other arrive as they were, and only from ranks that have the run's secret."""

import math
import pickle
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.ring.messages import Codec
from ringexp.ring.timing import HopTiming, IterationTiming
from support.message_ranks import KINDS, Unknown, endless, forged, gathered

TIMING = IterationTiming(1.5, 1.0, [HopTiming(0, 0.1, 0.2), HopTiming(1, math.inf, 0.0, 3e-320)], [0.1])
VALUES = [
    None,
    True,
    -(2**70),
    "ä\n\0\ud800",
    b"\x00\xff",
    (1, (2, [3, (4,)]), ()),
    {"a": [1.5], (1, 2): None, 3: {}},
    [TIMING, TIMING],
    [TIMING, None],
    {"dict": [["tuple", 1]], "HopTiming*": []},
]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def through(value: object) -> object:
    codec = Codec(KINDS)
    return codec.decode(codec.encode(value))


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_arrives_as_it_was(value):
    arrived = through(value)
    assert arrived == value
    assert type(arrived) is type(value)


@given(plain)
@settings(max_examples=200, deadline=None)
def test_any_plain_value_arrives_as_it_was(value):
    assert repr(through(value)) == repr(value)


@pytest.mark.parametrize("number", [math.nan, -0.0, 5e-324, 0.1 + 0.2, -math.inf, sys.float_info.max])
def test_floats_keep_their_bits(number):
    arrived = through(HopTiming(0, number, number))
    assert isinstance(arrived, HopTiming)
    assert struct.pack("d", arrived.wait_ms) == struct.pack("d", number)


@pytest.mark.parametrize(
    "value", [Unknown(1), {1}, object(), print, [Unknown(1)]], ids=lambda value: type(value).__name__
)
def test_other_types_are_not_sent(value):
    with pytest.raises(TypeError, match="no type that ranks exchange"):
        Codec(KINDS).encode(value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"Unknown": [1]}',
        b'{"HopTiming": [1, 2.0]}',
        b'{"HopTiming": {"source": 1}}',
        b'{"tuple": [], "dict": []}',
        b"{}",
        b'{"os.system": ["true"]}',
        b'{"bytes": "zz"}',
        b"\xff",
        pickle.dumps(TIMING),
        b"[" * 100_000,
    ],
)
def test_what_no_rank_writes_is_refused(text):
    with pytest.raises((ValueError, TypeError, RecursionError)):
        Codec(KINDS).decode(text)


@pytest.mark.parametrize("key", [b"", b"secret"], ids=["no key", "key"])
def test_every_rank_hears_every_value(pools, key):
    values = ["short", [TIMING] * 40, None]
    for everyone, of_rank_1 in pools[3].run(gathered, values, key):
        assert everyone == values
        assert of_rank_1 == values[1]


FORGERIES = ["no code", "zeros", "another key", "another sender", "repeated", "another channel", "changed"]


@pytest.mark.parametrize("forgery", [*FORGERIES, "empty"])
def test_a_message_without_the_secret_is_refused(pools, forgery):
    said, _ = pools[2].run(forged, forgery)
    assert said.startswith("rank 1 sent a message without this run's secret")


def test_a_message_with_the_secret_is_heard(pools):
    assert pools[2].run(forged, "right") == ["'false'", ""]


def test_a_message_longer_than_memory_is_refused(pools):
    said, _ = pools[2].run(endless)
    assert said == f"rank 1 announces a message of {1 << 60:,} bytes; no rank sends that"
