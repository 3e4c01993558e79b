"""DTC's encodings: the structures byte for byte, messages of other lengths, and what is no message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.encoding import BinaryCodec, JsonCodec, codec_of
from onetape.sources.dtc.layout import Malformed

ENCODINGS = list(dtc.ENCODINGS.values())

#: sizeof() of the structures in the protocol's C++ headers: with texts of fixed length, and of variable length.
SIZES = {
    dtc.LOGON_REQUEST: (284, 56),
    dtc.LOGON_RESPONSE: (256, 52),
    dtc.ENCODING_REQUEST: (16, 16),
    dtc.MARKET_DATA_REQUEST: (96, 28),
    dtc.MARKET_DATA_SNAPSHOT: (144, 144),
    dtc.TRADE_COMPACT: (24, 24),
    dtc.DEPTH_UPDATE: (56, 56),
    dtc.HISTORY_REQUEST: (120, 48),
    dtc.HISTORY_HEADER: (20, 20),
    dtc.HISTORY_BAR: (88, 88),
}


def _sample(number: int) -> dict[str, object]:
    def value(index: int, code: str) -> object:
        if code[0] == "s":
            return "ab" if code == "s4" else f"t{index}é"
        return index + 0.5 if code in "fd" else index + 1

    return {name: value(index, code) for index, (name, code, _) in enumerate(dtc.DEFINITIONS[number].fields)}


@pytest.mark.parametrize("number", SIZES)
def test_a_message_without_texts_has_the_size_of_its_structure(number: int) -> None:
    fixed, variable = BinaryCodec(), BinaryCodec(variable=True)
    empty = {name: "" for name, code, _ in dtc.DEFINITIONS[number].fields if code[0] == "s"}
    assert (len(fixed.encode(number, empty)), len(variable.encode(number, empty))) == SIZES[number]


def test_fields_stand_where_the_structure_has_them() -> None:
    wire = BinaryCodec().encode(
        dtc.TRADE, {"SymbolID": 7, "AtBidOrAsk": 2, "Price": 4500.25, "Volume": 3, "DateTime": 1.5}
    )
    assert wire == struct.pack("<HHIH6xddd", 40, 107, 7, 2, 4500.25, 3.0, 1.5)
    packed = BinaryCodec().encode(dtc.TRADE_UNBUNDLED_2, {"SymbolID": 7, "Price": 1.5, "DateTime": 9, "AtBidOrAsk": 1})
    assert packed == struct.pack("<HHIfIqBbb", 27, 146, 7, 1.5, 0, 9, 1, 0, 0) or len(packed) == 28
    assert BinaryCodec().encode(dtc.ENCODING_REQUEST, {"Encoding": 2}) == b"\x10\0\6\0\x08\0\0\0\2\0\0\0DTC\0"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("number", dtc.DEFINITIONS)
def test_every_message_comes_back_in_every_encoding(encoding: int, number: int) -> None:
    sample = _sample(number)
    codec = codec_of(encoding)
    assert list(codec.feed(codec.encode(number, sample))) == [(number, sample)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_messages_that_arrive_byte_by_byte_are_whole(encoding: int) -> None:
    codec = codec_of(encoding)
    wire = codec.encode(dtc.LOGON_REQUEST, {"Username": "ann"}) + codec.encode(dtc.HEARTBEAT, {"CurrentDateTime": 5})
    got = [message for at in range(len(wire)) for message in codec.feed(wire[at : at + 1])]
    assert [number for number, _ in got] == [dtc.LOGON_REQUEST, dtc.HEARTBEAT]
    assert got[0][1]["Username"] == "ann" and got[1][1]["CurrentDateTime"] == 5


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_behind_a_message_waits_for_the_next_reading(encoding: int) -> None:
    codec = codec_of(encoding)
    wire = codec.encode(dtc.HEARTBEAT, {"CurrentDateTime": 1}) + codec.encode(dtc.HEARTBEAT, {"CurrentDateTime": 2})
    feed = codec.feed(wire)
    assert next(feed)[1]["CurrentDateTime"] == 1
    feed.close()
    assert [fields["CurrentDateTime"] for _, fields in codec.feed(b"")] == [2]


def test_an_older_and_shorter_message_has_defaults_for_what_it_lacks() -> None:
    whole = BinaryCodec().encode(dtc.BID_ASK, {"SymbolID": 3, "BidPrice": 5.0, "BidQuantity": 2.0, "AskPrice": 6.0})
    for cut in (20, 22, 24):  # in the middle of a field, and at its end
        short = struct.pack("<H", cut) + whole[2:cut]
        ((_, fields),) = BinaryCodec().feed(short)
        assert (fields["SymbolID"], fields["BidPrice"]) == (3, 5.0)
        assert fields["AskPrice"] == dtc.DOUBLE_UNSET
        assert fields["BidQuantity"] == (2.0 if cut >= 20 else 0.0)


def test_a_newer_and_longer_message_and_an_unknown_one_are_passed_by_their_size() -> None:
    codec = BinaryCodec()
    wire = codec.encode(dtc.HEARTBEAT, {"CurrentDateTime": 5})
    longer = struct.pack("<H", len(wire) + 9) + wire[2:] + b"x" * 9
    unknown = struct.pack("<HH", 8, 9999) + b"1234"
    got = list(codec.feed(longer + unknown + wire))
    assert [fields["CurrentDateTime"] for _, fields in got] == [5, 5]
    assert codec.unknown == 1


def test_a_text_longer_than_its_place_is_cut_and_ended() -> None:
    wire = BinaryCodec().encode(dtc.LOGON_REQUEST, {"Username": "u" * 40})
    assert next(BinaryCodec().feed(wire))[1]["Username"] == "u" * 31


@pytest.mark.parametrize(
    ("encoding", "wire"),
    [
        (dtc.BINARY, b"\0\0\0\0"),
        (dtc.BINARY, b"\3\0\1\0"),
        (dtc.BINARY_VLS, struct.pack("<HHHH", 8, 1, 999, 0)),
        (dtc.BINARY_VLS, struct.pack("<HHHxxIHH", 16, dtc.MARKET_DATA_REJECT, 16, 1, 12, 60000)),
        (dtc.JSON, b"hello\0"),
        (dtc.JSON, b"[1]\0"),
        (dtc.JSON, b'{"Type":"x"}\0'),
        (dtc.JSON, b'{"Type":107,"Price":"dear"}\0'),
        (dtc.JSON, b'{"Type":107,"Price":1' + b"0" * 400 + b"}\0"),
        (dtc.JSON, b"[" * 100_000 + b"\0"),
        (dtc.JSON, b'{"Type":1,"a":"' + b"x" * (2 << 20)),
        (dtc.JSON_COMPACT, b'{"Type":1,"F":[' + b"1," * (1 << 20)),
    ],
)
def test_nonsense_is_malformed_and_never_kept_without_bound(encoding: int, wire: bytes) -> None:
    with pytest.raises(Malformed):
        list(codec_of(encoding).feed(wire))


@given(st.binary(max_size=300), st.sampled_from(ENCODINGS))
def test_no_bytes_raise_anything_else(data: bytes, encoding: int) -> None:
    codec = codec_of(encoding)
    try:
        list(codec.feed(data))
        list(codec.feed(data))
    except Malformed:
        pass


def test_json_takes_null_for_absent_and_whole_floats_for_integers() -> None:
    ((_, fields),) = JsonCodec().feed(b'{"Type":101,"SymbolID":2.0,"Symbol":"ES","Exchange":null,"New":1}\0')
    assert (fields["SymbolID"], fields["Symbol"], fields["Exchange"], fields["RequestAction"]) == (2, "ES", "", 1)
