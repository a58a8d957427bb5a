"""The HTTP client of the remote teacher against a real server with real faults: what is tried again, what is told."""

import threading

import pytest
from conftest import build_gpt2
from endpoint_server import CompletionsServer

from llm_finetuner.errors import FinetunerError, RecipeError, TrainingError
from llm_finetuner.teachers import endpoint
from llm_finetuner.teachers.endpoint import Endpoint, Refused

PAYLOAD = {"model": "big", "prompt": [3, 4, 5], "logprobs": 2, "echo": True}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tokenizer):
    server = CompletionsServer(build_gpt2(len(tokenizer)), tokenizer)
    yield server
    server.close()


def post(server, retries: int = 4, timeout: float = 30.0, key_variable: str = "NO_SUCH_KEY") -> dict:
    return Endpoint(server.url, key_variable, timeout, retries).post(PAYLOAD, threading.Event())


def test_passing_faults_are_survived(server):
    wanted = post(server)
    server.fail("503", "reset", "cut", "drop", "prose", "500", "429")
    assert post(server, retries=7) == wanted
    assert len(server.seen) == 1 + 8


def test_retry_after_is_honoured(server):
    server.fail("429:1")
    post(server)
    assert server.seen[1].at - server.seen[0].at >= 1


def test_a_silent_server_is_given_up_and_asked_again(server):
    server.fail("hang")
    post(server, timeout=1.0)
    assert len(server.seen) >= 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [("503", "status 503 (Service Unavailable): fault 503"), ("cut", "IncompleteRead"), ("prose", "a proxy's page"),
     ("reset", "reset"), ("drop", "closed connection")],
)  # fmt: skip
def test_what_does_not_pass_is_reported(server, fault, said):
    server.fail(*[fault] * 3)
    with pytest.raises(TrainingError) as error:
        post(server, retries=2)
    assert f"{server.url}/completions gave no usable answer in 3 tries" in error.value.what
    assert (
        said in error.value.what and "second line" not in error.value.what and "timeout" in error.value.hint
    )
    assert len(server.seen) == 3


def test_nobody_at_the_address(server):
    server.close()
    with pytest.raises(TrainingError, match="refused"):
        post(server, retries=1)


def test_too_long_a_wait_is_not_waited(server):
    server.fail("429:86400")
    with pytest.raises(TrainingError, match="asks to wait 86400 s"):
        post(server)
    assert len(server.seen) == 1


def test_stopping_ends_the_waiting(server):
    server.fail("429:60")
    stopped, told = threading.Event(), []

    def ask():
        with pytest.raises(TrainingError, match="no longer asked") as error:
            Endpoint(server.url, "", 30.0, 4).post(PAYLOAD, stopped)
        told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.seen:
        thread.join(0.01)
    stopped.set()
    thread.join(30)
    assert told and len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "hint"), [("404", "/v1/models"), ("413", "batch"), ("302", "points to"), ("400", "why")]
)
def test_refusals_are_not_tried_again(server, status, hint):
    server.fail(status)
    with pytest.raises(Refused, match=f"status {status}") as error:
        post(server)
    assert hint in error.value.hint and error.value.status == int(status) and len(server.seen) == 1


def test_what_is_not_supported_is_not_tried_again(server):
    server.how.style = "llama"
    with pytest.raises(Refused, match="Only no echo is supported"):
        post(server)
    assert len(server.seen) == 1


def test_the_key_comes_from_the_environment_and_is_never_repeated(server, monkeypatch):
    server.how.key = "sk-right"
    with pytest.raises(FinetunerError, match="TEACHER_KEY, which is not set"):
        post(server, key_variable="TEACHER_KEY")
    monkeypatch.setenv("TEACHER_KEY", "sk-wrong")
    with pytest.raises(FinetunerError, match=r"401 .*provided: \*\*\*") as error:
        post(server, key_variable="TEACHER_KEY")
    assert "sk-wrong" not in str(error.value) and "not accepted" in error.value.hint
    monkeypatch.setenv("TEACHER_KEY", "sk-right")
    post(server, key_variable="TEACHER_KEY")
    assert [seen.authorization for seen in server.seen] == ["", "Bearer sk-wrong", "Bearer sk-right"]


def test_addresses():
    for given in ("host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/completions"):
        assert endpoint.completions_url(given) == "http://host:8000/v1/completions"
    assert endpoint.completions_url("https://host/api/v1") == "https://host/api/v1/completions"
    for given, said in (
        ("", "needs url"),
        ("ftp://host", "not an http address"),
        ("http://me:secret@host", "password"),
    ):
        with pytest.raises(RecipeError, match=said) as error:
            endpoint.completions_url(given)
        assert "secret" not in str(error.value)


def test_seconds_to_wait():
    assert endpoint.seconds_to_wait("7") == 7 and endpoint.seconds_to_wait("soon") == 0
    assert endpoint.seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert endpoint.seconds_to_wait("Wed, 21 Oct 2099 07:28:00 GMT") > 1e6
