"""One request and its response: headers, the token, bodies within limits and in time, what is compressed."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.serving.http.request import (
    TAKE,
    ClientGone,
    Headers,
    HttpError,
    Response,
    check_token,
    compress,
    decompress,
    encoding_of,
    read_body,
    respond,
)
from mlflow_trt.serving.limits import LEAST


def headers(**values):
    return Headers({"headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in values.items()]})


# --- headers ---


def test_the_last_of_several_headers_counts():
    assert Headers({"headers": [(b"a", b"1"), (b"b", b"x"), (b"a", b"2")]}).get("a") == "2"
    assert headers().get("a") is None


@pytest.mark.parametrize(("sent", "number"), [("0", 0), ("007", 7), ("9" * 15, 10**15 - 1), (None, None)])
def test_a_header_that_is_a_whole_number(sent, number):
    assert headers(**({} if sent is None else {"n": sent})).number("n") == number


@pytest.mark.parametrize("sent", ["", "-1", "+1", "1.0", "1e3", " 1", "1 ", "0x1", "²", "1,1", "9" * 16])
def test_a_header_that_is_none(sent):
    with pytest.raises(HttpError, match="The header n is not a whole number") as caught:
        headers(n=sent).number("n")
    assert caught.value.status == 400


@pytest.mark.parametrize("sent", ["Bearer a token", "bearer a token", "BEARER  a token "])
def test_the_right_token(sent):
    check_token(headers(authorization=sent), "a token")


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "a token", "Basic a token", "Bearer a toke", "Bearer A token", "Bearer é"]
)
def test_any_other_token(sent):
    with pytest.raises(HttpError) as caught:
        check_token(headers(**({} if sent is None else {"authorization": sent})), "a token")
    assert (caught.value.status, caught.value.headers) == (401, (("www-authenticate", "Bearer"),))


def test_where_no_token_is_asked_for_none_is_looked_at():
    check_token(headers(authorization="Basic whatever"), None)


# --- bodies ---


def arriving(*pieces, end="whole"):
    """ASGI's ``receive``: these pieces, and then the end, a client that is gone, or nothing any more."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if end == "whole":
        messages[-1]["more_body"] = False
    elif end == "gone":
        messages.append({"type": "http.disconnect"})

    async def receive():
        if messages:
            await asyncio.sleep(0)
            return messages.pop(0)
        await asyncio.Event().wait()

    return receive


def read(receive, limit=100, seconds=10.0, **given):
    return bytes(asyncio.run(read_body(receive, headers(**given), limit, seconds, {})))


@pytest.mark.parametrize("pieces", [[b""], [b"abc"], [b"a", b"bc"], [b"", b"abc", b""]])
@pytest.mark.parametrize("length", [True, False])
def test_a_body_in_any_pieces(pieces, length):
    body = b"".join(pieces)
    assert read(arriving(*pieces), **({"content_length": str(len(body))} if length else {})) == body


def test_a_body_of_just_the_limit_and_one_of_more():
    assert len(read(arriving(b"x" * 100))) == 100
    assert len(read(arriving(b"x" * 60, b"x" * 40))) == 100
    for receive, given_ in (
        (arriving(b"x" * 101), {}),
        (arriving(b"x" * 60, b"x" * 41), {}),
        (arriving(end="never"), {"content_length": "101"}),
    ):
        with pytest.raises(HttpError, match="more than 100 bytes") as caught:
            read(receive, **given_)
        assert (caught.value.status, caught.value.headers) == (413, (("connection", "close"),))


@pytest.mark.parametrize("pieces", [[], [b"a"], [b"a", b"b"]])
def test_a_client_that_goes_away(pieces):
    with pytest.raises(ClientGone):
        read(arriving(*pieces, end="gone"))


@pytest.mark.parametrize("pieces", [[], [b"a"], [b"a"] * 5])
def test_a_body_that_stands_still(pieces):
    with pytest.raises(HttpError, match=r"nor 1 MiB more of it, within 0\.05 s") as caught:
        read(arriving(*pieces, end="never"), seconds=0.05)
    assert (caught.value.status, caught.value.headers) == (408, (("connection", "close"),))


def test_a_body_that_goes_on_has_longer():
    async def receive():
        await asyncio.sleep(0.03)
        pieces.append(1)
        return {"type": "http.request", "body": bytes(LEAST), "more_body": len(pieces) < 6}

    pieces = []
    assert len(read(receive, limit=6 * LEAST, seconds=0.1)) == 6 * LEAST


def test_pieces_that_the_connection_hands_over_itself():
    """They come between the first one and the end without ASGI's messages."""
    state, handed = {}, []

    async def receive():
        if not handed:
            handed.append(b"first")
            return {"type": "http.request", "body": b"a", "more_body": True}
        assert [state[TAKE](piece) for piece in (b"b", b"", b"c" * 97)] == [True, True, True]
        assert state[TAKE](b"d") is (limit == 100)
        return {"type": "http.request", "body": b"", "more_body": False}

    for limit in (100, 99):
        handed.clear()
        reading = read_body(receive, headers(), limit, 10, state)
        if limit == 100:
            assert bytes(asyncio.run(reading)) == b"ab" + b"c" * 97 + b"d"
        else:
            with pytest.raises(HttpError, match="more than 99 bytes"):
                asyncio.run(reading)
        assert not state  # and nothing of the body stays until the next request


def test_who_ends_the_request_itself_ends_it():
    """Another's cancellation is no late body."""

    async def main():
        task = asyncio.create_task(read_body(arriving(end="never"), headers(), 100, 10, {}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# --- what was compressed ---

PACKED = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", PACKED)
@given(body=st.binary(max_size=2000))
def test_what_was_compressed_comes_back(encoding, body):
    assert bytes(decompress(PACKED[encoding](body), encoding, 2000)) == body


@pytest.mark.parametrize("encoding", ["gzip", " GZIP ", "deflate"])
def test_the_header_says_how(encoding):
    packed = PACKED[encoding.strip().lower()](b"body")
    assert read(arriving(packed), content_encoding=encoding) == b"body"


@pytest.mark.parametrize("encoding", ["identity", "Identity", None])
def test_or_that_it_is_as_it_is(encoding):
    assert read(arriving(b"body"), **({"content_encoding": encoding} if encoding else {})) == b"body"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", ""])
def test_an_encoding_that_is_not_known(encoding):
    with pytest.raises(HttpError, match="is not known") as caught:
        decompress(b"", encoding, 100)
    assert caught.value.status == 415


@pytest.mark.parametrize("encoding", PACKED)
def test_damaged_bodies(encoding):
    whole = PACKED[encoding](b"body" * 50)
    other = bytearray(whole)
    other[len(other) // 2] ^= 0xFF
    for damaged in (b"", b"no such thing", whole[:-1], whole[:5], whole + b"x", whole + whole, bytes(other)):
        with pytest.raises(HttpError, match=f"not valid {encoding}") as caught:
            decompress(damaged, encoding, 1000)
        assert caught.value.status == 400


@pytest.mark.parametrize("encoding", PACKED)
def test_what_becomes_too_large_is_refused_whatever_its_own_size(encoding):
    assert len(decompress(PACKED[encoding](bytes(5000)), encoding, 5000)) == 5000
    for size in (5001, 50 << 20):
        with pytest.raises(HttpError, match="more than 5,000 bytes") as caught:
            decompress(PACKED[encoding](bytes(size)), encoding, 5000)
        assert caught.value.status == 413


# --- what is compressed ---

JSON = Response(200, [b"x" * 2000])
TENSORS = Response(200, [b"x" * 2000], media="application/octet-stream")
LITTLE = Response(200, [b"x" * 1023])


@pytest.mark.parametrize(
    ("accepted", "response", "encoding"),
    [
        ("", JSON, None),
        ("identity", JSON, None),
        ("br", JSON, None),
        ("*", JSON, None),
        ("gzip", JSON, "gzip"),
        ("deflate", JSON, "deflate"),
        ("br, deflate, gzip", JSON, "deflate"),
        (" GZIP;q=0.5 , br", JSON, "gzip"),
        ("gzip", LITTLE, None),
        ("gzip", TENSORS, "gzip"),  # asked for alone, as by Triton's client
        ("gzip, deflate", TENSORS, None),
        ("gzip;q=0", JSON, None),
        ("gzip; q=0.000", JSON, None),
        ("gzip;q=0, deflate;q=0.1", JSON, "deflate"),
        ("identity, gzip;q=0", JSON, None),
        ("gzip, identity;q=0", TENSORS, "gzip"),
        ("gzip;q=0.001", JSON, "gzip"),
    ],
)
def test_how_a_response_is_compressed(accepted, response, encoding):
    assert encoding_of(response, accepted) == encoding


@pytest.mark.parametrize(("encoding", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_compressed_response_is_the_same_one(encoding, undo):
    response = Response(201, [b"a" * 1000, memoryview(b"b" * 1000)], {"x": "y"}, "text/plain")
    found = compress(response, encoding)
    assert undo(b"".join(found.parts)) == b"a" * 1000 + b"b" * 1000
    assert (found.status, found.headers, found.media) == (201, {"x": "y", "content-encoding": encoding}, "text/plain")
    assert response.headers == {"x": "y"}


# --- sending ---


def sent(response):
    messages = []

    async def send(message):
        messages.append(message)

    asyncio.run(respond(send, response))
    start, *bodies = messages
    assert [body["more_body"] for body in bodies] == [True] * (len(bodies) - 1) + [False]
    return start["status"], dict(start["headers"]), [bytes(body["body"]) for body in bodies]


@pytest.mark.parametrize(
    ("parts", "bodies"),
    [
        ([], [b""]),
        ([b"a"], [b"a"]),
        ([b"a", memoryview(b"bc")], [b"abc"]),  # one packet
        ([b"a", bytes(1 << 16)], [b"a", bytes(1 << 16)]),
    ],
)
def test_a_response_and_its_length(parts, bodies):
    status, found, pieces = sent(Response(202, parts, {"retry-after": "1"}))
    length = sum(map(len, bodies))
    assert (status, pieces) == (202, bodies)
    assert found == {
        b"retry-after": b"1",
        b"content-type": b"application/json",
        b"content-length": str(length).encode(),
    }


def test_a_part_s_length_is_in_bytes():
    assert Response(200, [memoryview(b"x" * 16).cast("f")]).length == 16
    assert Response(200).length == 0
