"""Who connects to an inference process over TCP proves to know the secret, and so does the process; nobody sends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import InferenceUnavailable, ModelUnavailable, Problem
from app.predictions import frames
from app.predictions.frames import BadFrame
from app.predictions.gateway import Gateway
from app.predictions.handshake import ClientHandshake, ServerHandshake
from app.settings import Settings
from tests import frame_reader
from tests.servers import free_port
from tests.worker.inference_server import serving

SECRET = "known-to-both-ends-alone"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.mark.parametrize(
    "addresses",
    [
        {"inference_listen": "tcp://0.0.0.0:8001"},
        {"inference_listen": "tcp://10.0.0.2:8001"},
        {"inference_addresses": "tcp://127.0.0.1:8001,tcp://inference:8001"},
    ],
)
def test_SEC11_a_process_refuses_to_start_on_the_network_without_the_secret(addresses: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set DENLL_INFERENCE_SECRET"):
        Settings(**addresses)
    with pytest.raises(ValidationError, match="16 characters"):
        Settings(**addresses, inference_secret="short")
    Settings(**addresses, inference_secret=SECRET)


def test_loopback_and_unix_sockets_need_no_secret() -> None:
    addresses = "unix:///tmp/socket,tcp://localhost:8001"
    settings = Settings(inference_listen="tcp://127.0.0.1:8001", inference_addresses=addresses)
    assert settings.inference_secret_bytes is None


def test_the_secret_is_never_sent_and_no_proof_fits_another_connection() -> None:
    sent = []
    for _ in range(2):
        server, client = ServerHandshake(SECRET.encode()), ClientHandshake(SECRET.encode())
        challenge = server.challenge()
        answer = client.answer(challenge)
        assert answer is not None
        confirmation = server.answer(answer)
        assert client.answer(confirmation) is None
        sent.append([challenge, answer, confirmation])
    assert SECRET not in json.dumps(sent)
    with pytest.raises(BadFrame):
        ServerHandshake(SECRET.encode()).answer(sent[0][1])  # recorded, and sent again
    again = ClientHandshake(SECRET.encode())
    again.answer(sent[0][0])
    with pytest.raises(BadFrame):
        again.answer(sent[0][2])


@pytest.mark.parametrize(
    "header", [{}, {"proof": None, "challenge": "a"}, {"proof": "\ud800", "challenge": "a"}, {"challenge": 1}]
)
def test_what_is_no_proof_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(BadFrame):
        ServerHandshake(SECRET.encode()).answer(header)


async def ask(port: int, secret: str | None) -> Problem | None:
    """What a gateway that knows this secret gets for a request; None for a reply without an error."""
    gateway = Gateway(
        f"tcp://127.0.0.1:{port}",
        connect_timeout_s=1.0,
        deadline_s=2.0,
        max_in_flight=8,
        secret=secret.encode() if secret is not None else None,
    )
    try:
        await gateway.send({"model": str(uuid.uuid4())}, [])
    except Problem as problem:
        return problem
    finally:
        gateway.close()
    return None


@pytest.mark.parametrize("secret", [SECRET, "another-secret-of-16", None])
def test_only_a_gateway_that_knows_the_secret_gets_replies(secret: str | None, tmp_path: Path) -> None:
    async def run() -> Problem | None:
        async with asyncio.timeout(60), serving(tmp_path, inference_secret=SECRET) as port:
            return await ask(port, secret)

    problem = asyncio.run(run())
    # A request without an image is refused by the process itself, which is a reply.
    assert type(problem) is (ModelUnavailable if secret == SECRET else InferenceUnavailable)


def test_a_gateway_sends_no_image_to_a_process_that_does_not_know_the_secret() -> None:
    received: list[dict[str, Any]] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(frames.encode({"challenge": "n"}))
        async for frame in frame_reader.read(reader):
            received.append(frame.header)
            writer.writelines(frames.encode({"proof": frame.header.get("proof", "")}))
        writer.close()

    async def run() -> Problem | None:
        port = free_port()
        async with asyncio.timeout(60), await asyncio.start_server(pretend, "127.0.0.1", port):
            return await ask(port, SECRET)

    assert isinstance(asyncio.run(run()), InferenceUnavailable)
    assert received
    assert all(header.keys() == {"challenge", "proof", "sizes"} for header in received)


async def be_silent(client: Client) -> None:
    """Until the other end closes."""


async def send_a_request(client: Client) -> None:
    client[1].writelines(frames.encode({"id": "1", "model": str(uuid.uuid4()), "deadline_s": 1.0}, [b"x"]))


async def send_much(client: Client) -> None:
    client[1].write(b"x" * 100_000)


@pytest.mark.parametrize("attack", [be_silent, send_a_request, send_much])
def test_who_proves_nothing_is_cut_off(attack: Callable[[Client], Awaitable[None]], tmp_path: Path) -> None:
    async def run() -> bytes:
        async with asyncio.timeout(60), serving(tmp_path, inference_secret=SECRET, connect_timeout_s=0.3) as port:
            client = await asyncio.open_connection("127.0.0.1", port)
            started = time.monotonic()
            await attack(client)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                received = await client[0].read()
            client[1].close()
            assert time.monotonic() - started < 10.0
            return received

    assert asyncio.run(run()).count(b"\n") <= 1  # the challenge and nothing else
