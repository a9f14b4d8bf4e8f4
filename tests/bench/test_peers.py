"""The line between the harness and a peer, with workers that are a few lines of Python."""

from __future__ import annotations

import sys

import pytest
from bench.client import Options, Unsupported
from bench.peers import install, remote
from bench.peers.remote import Peer, PeerError

READY = """
import json, sys
print(json.dumps({"ready": {"version": "1", "settings": "none"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    reply = {"id": request["id"], "text": request["prompt"][::-1], "prompt_tokens": 3,
             "cached_tokens": None,
             "generated_tokens": 2, "time_to_first_token": None}
    if request["prompt"] == "hang":
        continue
    if request["prompt"] == "end":
        break
    if request["prompt"] == "cannot":
        reply = {"id": request["id"], "unsupported": "no"}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ASGL_HOME", str(tmp_path))
    (tmp_path / "peers").mkdir()
    return tmp_path / "peers"


@pytest.fixture
async def peer(home):
    peer = Peer("made-up", [sys.executable, "-c", READY])
    await peer.start()
    yield peer
    await peer.stop()


async def test_a_request_and_what_a_peer_cannot_do(peer):
    assert peer.about["version"] == "1"
    assert (await peer.complete("abc", Options(max_tokens=2))).text == "cba"
    with pytest.raises(Unsupported):
        await peer.complete("cannot", Options(max_tokens=2))


async def test_a_request_that_is_not_answered_is_an_error(peer, monkeypatch):
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 0.01)
    with pytest.raises(PeerError, match="no answer within 0 s; its log is"):
        await peer.complete("hang", Options(max_tokens=2))


async def test_a_peer_that_ends_fails_its_requests_and_can_be_started_again(peer):
    with pytest.raises(PeerError, match="ended"):
        await peer.complete("end", Options(max_tokens=2))
    await peer.stop()
    with pytest.raises(PeerError, match="does not run"):
        await peer.complete("abc", Options(max_tokens=2))
    await peer.start()
    assert (await peer.complete("abc", Options(max_tokens=2))).text == "cba"


async def test_a_peer_that_is_stopped_at_once(home):
    peer = Peer("made-up", [sys.executable, "-c", READY])
    await peer.start()
    await peer.stop()
    assert peer._reader.exception() is None


async def test_a_peer_that_does_not_start(home):
    with pytest.raises(PeerError, match="ended while it started; its log is"):
        await Peer("made-up", [sys.executable, "-c", "raise SystemExit(1)"]).start()


def test_steps_that_succeeded_are_not_done_again(home, capfd, monkeypatch):
    monkeypatch.setattr(install.venv, "create", lambda *arguments, **options: None)

    def write(name: str, code: str) -> install.Step:
        return install.Step(name, (sys.executable, "-c", f"print('{name} ran'); {code}"))

    assert not install.install(
        "made-up", [write("first", ""), write("second", "raise SystemExit(3)")]
    )
    assert "second failed with status 3" in capfd.readouterr().out
    assert install.install("made-up", [write("first", ""), write("second", "")])
    assert (home / "made-up" / "install.log").read_text().count(
        "first ran"
    ) == 2  # the command, and what it printed


def test_a_step_ends_in_time(home, capfd, monkeypatch):
    monkeypatch.setattr(install.venv, "create", lambda *arguments, **options: None)
    step = install.Step(
        "slow", (sys.executable, "-c", "import threading; threading.Event().wait()"), seconds=0.1
    )
    assert not install.install("made-up", [step])
    assert "slow was not done in 0 s" in capfd.readouterr().out


def test_two_ways_to_use_a_peer_share_its_environment(home, monkeypatch):
    monkeypatch.setitem(install.RECIPES, "made-up", (install.Step("install", ("true",)),))
    assert install.installed("made-up:fast") is None
    (home / "made-up").mkdir()
    (home / "made-up" / "install.done").touch()
    assert (
        install.installed("made-up:fast")
        == install.installed("made-up")
        == home / "made-up" / "venv" / "bin" / "python"
    )
