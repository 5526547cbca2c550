"""Messages between the server's processes, over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

from mlflow_trt.serving.workers.ipc import IpcConnection
from mlflow_trt.serving.workers.messages import InferenceCount, ModelStatus


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


def counts(*numbers):
    """Messages that are told apart by a number."""
    return [InferenceCount("m", "http", number, None) for number in numbers]


def numbers(received):
    return [message.status for _, message in received]


def test_messages_of_all_threads_arrive_whole_and_in_order():
    async def run():
        async with pair() as (first, _, received, _):

            def send(sender):
                for number in range(200):
                    first.send(ModelStatus(str(sender), "ü" * number * 50, {"shape": (1, 2.5, None)}, str(number)))

            threads = [threading.Thread(target=send, args=(sender,)) for sender in range(3)]
            for thread in threads:
                thread.start()
            send(3)
            await until(lambda: len(received) == 800)
            for sender in range(4):
                mine = [message for _, message in received if message.model == str(sender)]
                assert [message.current for message in mine] == list(map(str, range(200)))
                assert mine[7].registered_model == "ü" * 350
                assert mine[7].status == {"shape": (1, 2.5, None)}
            for thread in threads:
                thread.join()

    asyncio.run(run())


def test_what_has_time_travels_with_the_next_message_or_alone_a_little_later():
    async def run():
        async with pair() as (first, _, received, _):
            one, two, three, four, five = counts(1, 2, 3, 4, 5)
            first.send_later(one)
            first.send(two)
            await until(lambda: len(received) == 2)
            assert numbers(received) == [1, 2]
            begin = time.monotonic()
            first.send_later(three)
            first.send_later(four)
            await until(lambda: len(received) == 4)
            assert numbers(received[2:]) == [3, 4]
            assert received[2][0] - begin >= 0.01
            first.send(five)
            await until(lambda: len(received) == 5)

    asyncio.run(run())


def test_after_the_other_end_is_gone_messages_go_nowhere():
    async def run():
        async with pair() as (first, second, _, gone):
            second.close()
            await asyncio.wait_for(gone.wait(), 10)
            one, two = counts(1, 2)
            first.send(one)
            first.send_later(two)
            await asyncio.sleep(0.05)

    asyncio.run(run())
