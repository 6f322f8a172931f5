"""What a worker says that the server cannot take."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE

import pytest

from segserve.workers.placement import Call, WorkerDiedError
from segserve.workers.placement.local import LocalWorker
from segserve.workers.wire import MAX_LINE, decode, encode_reply

SECONDS = 30.0


def test_a_reply_that_is_too_long_is_an_error_and_no_longer_too_long() -> None:
    fits = {"id": 1, "reply": {"text": "a" * (MAX_LINE - 100)}}
    assert decode(encode_reply(fits)) == fits
    line = encode_reply({"id": 7, "reply": {"text": "a" * MAX_LINE}})
    assert len(line) < 1000
    told = decode(line)
    assert told["id"] == 7
    assert told["error"]["status"] == 413
    assert "16.0 MiB are the most" in told["error"]["message"]


@pytest.mark.parametrize("said", ["'no JSON'", "'[]'", "'{}'", f"'x' * {MAX_LINE + 1}"])
def test_a_process_that_the_server_ends_for_what_it_says_is_not_said_to_have_been_killed(said: str) -> None:
    program = f"print({said}, flush=True); input(); input()"

    async def story() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=MAX_LINE
        )
        worker = LocalWorker(process, "text")
        with pytest.raises(WorkerDiedError, match="ended by the server, which could not make sense"):
            await asyncio.wait_for(worker.call(Call("classify", {})), SECONDS)
        await worker.stop()

    asyncio.run(story())
