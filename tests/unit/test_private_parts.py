"""The private parts of aiohttp that are relied on: an upgrade that changes one fails here, by its name."""

import asyncio
import inspect
from collections import deque
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader, hdrs, http_parser, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from runstream.broker.http_server import TOO_MANY_HEADERS
from tests.support.waiting import wait_until


class UntilClosed(web.StreamResponse):
    """As pass-through has it."""

    _length_check = False


@pytest.mark.parametrize(("kind", "encoding"), [(web.StreamResponse, "chunked"), (UntilClosed, None)])
async def test_stream_response_length_check(kind: type[web.StreamResponse], encoding: str | None) -> None:
    """`StreamResponse._length_check`: nothing else makes an HTTP/1.1 response that ends with its connection."""
    writer = StreamWriter(Mock(transport=Mock(is_closing=lambda: False)), asyncio.get_running_loop())
    request = make_mocked_request("GET", "/", writer=writer)
    response = kind()
    await response.prepare(request)
    assert (response.headers.get(hdrs.TRANSFER_ENCODING), writer.chunked) == (encoding, encoding is not None)


async def test_request_handler_request_count_and_waiter() -> None:
    """`RequestHandler._request_count`, `_waiter`: nothing else tells a head that has come from a part of one."""
    loop = asyncio.get_running_loop()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    handler = web.RequestHandler(web.Server(answer), loop=loop)
    handler.connection_made(Mock(is_closing=lambda: False))
    await wait_until(lambda: handler._waiter is not None)
    handler.data_received(b"GET / HTTP/1.1\r\nHost:")
    assert (handler._request_count, handler._waiter is not None and handler._waiter.done()) == (0, False)
    handler.data_received(b" test\r\n\r\n")
    assert (handler._request_count, handler._waiter is not None and handler._waiter.done()) == (1, True)
    await handler.shutdown(0.1)


def test_too_many_headers() -> None:
    """The text of the error that aiohttp has for them: it is of no class of its own."""
    source = inspect.getsource(http_parser)
    assert f'BadHttpMessage("{TOO_MANY_HEADERS}")' in source


async def test_what_the_parser_gives_up_on_is_received() -> None:
    """`RequestHandler._messages`, `_ErrInfo`: nothing else says that a body is not framed as its headers say."""
    loop = asyncio.get_running_loop()
    protocol = RequestHandler(web.Server(Mock()), loop=loop)
    protocol._messages = deque()
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    ((_, content),) = protocol._messages
    protocol.data_received(b"ZZ\r\n")
    _, (broken, _) = protocol._messages
    assert isinstance(broken, _ErrInfo)
    assert not content.is_eof()


async def test_stream_reader_read_nowait() -> None:
    """`StreamReader._read_nowait`: nothing else gives what came before a connection broke, or a chunk was none."""
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    for part in (b"what ", b"came"):
        content.feed_data(part)
    content.set_exception(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await content.readany()
    assert content._read_nowait(-1) == b"what came"
    assert content._read_nowait(-1) == b""
