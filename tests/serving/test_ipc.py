"""Messages between the server's processes, over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

from mlflow_trt.serving.workers.ipc import IpcConnection


@contextlib.asynccontextmanager
async def pair():
    """Two connections, what the second received, and when the first was told that the other is gone."""
    received, gone = [], asyncio.Event()
    ends = socket.socketpair()
    first = await IpcConnection.open(ends[0], lambda message: None, gone.set)
    second = await IpcConnection.open(
        ends[1], lambda message: received.append((time.monotonic(), message)), lambda: None
    )
    yield first, second, received, gone
    first.close()
    second.close()


async def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become true"
        await asyncio.sleep(0.002)


def test_messages_of_all_threads_arrive_whole_and_in_order():
    async def run():
        async with pair() as (first, _, received, _):

            def send(sender):
                for number in range(200):
                    first.send({"sender": sender, "number": number, "text": "ü" * number * 50, "shape": (1, 2.5, None)})

            threads = [threading.Thread(target=send, args=(sender,)) for sender in range(3)]
            for thread in threads:
                thread.start()
            send(3)
            await until(lambda: len(received) == 800)
            for sender in range(4):
                mine = [message for _, message in received if message["sender"] == sender]
                assert [message["number"] for message in mine] == list(range(200))
                assert mine[7]["text"] == "ü" * 350
                assert mine[7]["shape"] == (1, 2.5, None)
            for thread in threads:
                thread.join()

    asyncio.run(run())


def test_what_has_time_travels_with_the_next_message_or_alone_a_little_later():
    async def run():
        async with pair() as (first, _, received, _):
            first.send_later({"n": 1})
            first.send({"n": 2})
            await until(lambda: len(received) == 2)
            assert [message["n"] for _, message in received] == [1, 2]
            begin = time.monotonic()
            first.send_later({"n": 3})
            first.send_later({"n": 4})
            await until(lambda: len(received) == 4)
            assert [message["n"] for _, message in received[2:]] == [3, 4]
            assert received[2][0] - begin >= 0.01
            first.send({"n": 5})
            await until(lambda: len(received) == 5)

    asyncio.run(run())


def test_after_the_other_end_is_gone_messages_go_nowhere():
    async def run():
        async with pair() as (first, second, _, gone):
            second.close()
            await asyncio.wait_for(gone.wait(), 10)
            first.send({"n": 1})
            first.send_later({"n": 2})
            await asyncio.sleep(0.05)

    asyncio.run(run())
