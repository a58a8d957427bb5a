"""The HTTP side of a remote teacher: one JSON request to a completions endpoint, repeated where that can help."""

import email.utils
import http.client
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from llm_finetuner.errors import ModelError, RecipeError, TrainingError

FIRST_PAUSE = 0.5  # seconds before the first retry; doubled each time, give or take half
LONGEST_WAIT = 300.0  # seconds: an endpoint that asks for more patience is given up
SHOWN = 300  # characters of what an endpoint said
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Refused(ModelError):
    """The endpoint answered and would answer the same again: `status`, and `said`, the first line of its body."""

    def __init__(self, what: str, hint: str, status: int, said: str):
        super().__init__(what, hint)
        self.status, self.said = status, said


class Passing(Exception):
    """What may be over the next time; `wait`: the seconds that the endpoint asked for."""

    def __init__(self, said: str, wait: float = 0.0):
        super().__init__(said)
        self.wait = wait


class Stay(urllib.request.HTTPRedirectHandler):
    """No redirects: urllib would carry the key to another host, and drop the body on the way."""

    def redirect_request(self, *_):
        return None


def completions_url(url: str) -> str:
    """`host:8000`, `http://host:8000` and `.../v1` as the address that is asked. Raises RecipeError."""
    text = url.strip().rstrip("/")
    parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    example = "give the address of the server, such as http://localhost:8000/v1"
    if not text:
        raise RecipeError("a remote teacher needs url", example)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(f"url {text!r} is not an http address", example)
    if parts.username or parts.password:
        raise RecipeError("url holds a user name or password", "put the key into an environment variable")
    path = parts.path.rstrip("/") or "/v1"
    path = path if path.endswith("/completions") else f"{path}/completions"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class Endpoint:
    """Posts JSON. Connection errors, timeouts, cut answers, 429 and 5xx are tried again; other refusals are not.

    The key is read from the environment, sent to `url` alone and never written, nor repeated from what comes back.
    """

    def __init__(self, url: str, key_variable: str, timeout: float, retries: int):
        self.url, self.key_variable = completions_url(url), key_variable
        self.timeout, self.retries = timeout, retries
        self._key = os.environ.get(key_variable, "").strip()
        self._opener = urllib.request.build_opener(Stay)
        self._random = random.Random()  # not the global one: retries must not change what a seed gives

    def exposes_key(self) -> bool:
        """Whether the key travels unencrypted to another machine."""
        parts = urllib.parse.urlsplit(self.url)
        return bool(self._key) and parts.scheme == "http" and parts.hostname not in LOOPBACK

    def post(self, payload: dict[str, Any], stopped: threading.Event) -> dict[str, Any]:
        """The answer to `payload`; once `stopped` is set, nothing more is asked.

        Raises Refused where asking again is useless, TrainingError when the retries are used up.
        """
        body = json.dumps(payload).encode()
        for attempt in range(self.retries + 1):
            if stopped.is_set():
                raise TrainingError(
                    f"{self.url} is no longer asked", "another request failed, or the run was stopped"
                )
            try:
                return self._once(body)
            except Passing as error:
                last = error
            pause = FIRST_PAUSE * 2**attempt * self._random.uniform(0.5, 1.5)
            if attempt == self.retries or last.wait > LONGEST_WAIT:
                break
            stopped.wait(max(pause, last.wait))
        asked = f"; it asks to wait {last.wait:.0f} s" if last.wait > LONGEST_WAIT else ""
        raise TrainingError(
            f"{self.url} gave no usable answer in {attempt + 1} tries; the last one: {last}{asked}",
            "see that the server runs and look at its log; where it is only slow, raise timeout "
            f"({self.timeout:g} s) or retries ({self.retries}), or lower batch or concurrency. "
            "Answers that did come are kept: the next run asks for the others only",
        ) from last

    def _once(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, body, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            self._judge(error)
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                raise Refused(
                    f"{self.url}: {error.reason}", "check the server's certificate and the address", 0, ""
                ) from error
            raise Passing(self._clean(str(error.reason) or type(error.reason).__name__)) from error
        except (OSError, http.client.HTTPException) as error:
            raise Passing(self._clean(str(error) or type(error).__name__)) from error
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise Passing(f"not JSON, or cut off: {self._first_line(text)}") from error
        if not isinstance(answer, dict):
            raise Passing(f"not a JSON object: {self._first_line(text)}")
        return answer

    def _judge(self, error: urllib.error.HTTPError) -> None:
        """Raise Passing for a status that may pass, Refused for any other."""
        status = error.code
        try:
            said = self._first_line(error.read())
        except (OSError, http.client.HTTPException):
            said = ""
        what = f"status {status} ({error.reason}): {said}" if said else f"status {status} ({error.reason})"
        # llama.cpp answers 500 to what it does not support: no use in asking again
        if status in (408, 429) or (status >= 500 and status != 501 and "support" not in said):
            raise Passing(what, seconds_to_wait(error.headers.get("Retry-After", ""))) from error
        raise Refused(f"{self.url} answers {what}", self._advice(status, error), status, said) from error

    def _advice(self, status: int, error: urllib.error.HTTPError) -> str:
        if status in (401, 403):
            state = "set, but not accepted" if self._key else "not set"
            return f"the key is read from the environment variable {self.key_variable}, which is {state}"
        if status == 404:
            return (
                "check the address, and that teacher.name is a model that the server lists under /v1/models"
            )
        if status == 413:
            return "lower batch, the number of sequences a request"
        if 300 <= status < 400:
            return (
                f"it points to {error.headers.get('Location', 'another address')}: give that address as url"
            )
        return "the request itself was refused: its answer says why"

    def _first_line(self, body: bytes) -> str:
        """The message of an OpenAI-style error, or the first line that says something."""
        text = body.decode("utf-8", "replace").strip()
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            inner = found.get("error", found)
            inner = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
            text = inner if isinstance(inner, str) else json.dumps(inner)
        return self._clean(text.split("\n", 1)[0])

    def _clean(self, text: str) -> str:
        """Printable, short, without the key: some servers repeat it."""
        text = text.replace(self._key, "***") if self._key else text
        return "".join(c if c.isprintable() else " " for c in text)[:SHOWN]


def seconds_to_wait(header: str) -> float:
    """Retry-After, in seconds or as a date; 0 where it is neither."""
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
