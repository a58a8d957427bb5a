"""A small completions server for the tests: real HTTP on the loopback, a real model, and faults on request."""

import json
import queue
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

LIST_LIMIT = 10**6


@dataclass
class Seen:
    """One request as it came."""

    body: dict[str, Any]
    authorization: str
    at: float  # seconds, monotonic


@dataclass
class Behaviour:
    """How the server answers. style: vllm (ids, echo), sglang (texts, echo), llama (no echo, ids), strict (no echo, no
    fields but OpenAI's, texts), deaf (takes echo and leaves it out).

    faults: what happens to the next requests, in order: "503", "429:1" (Retry-After), "hang", "reset", "cut", "drop",
    "prose", "mute" (no log-probabilities); "ok" for none.
    """

    style: str = "vllm"
    max_logprobs: int = LIST_LIMIT
    key: str = ""  # "": none is asked for
    shift: int = 0  # added to every token id that it names: another tokenizer
    scale: float = 1.0  # of the log-probabilities: below 1 they sum to more than 1
    faults: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def next_fault(self) -> str:
        try:
            return self.faults.get_nowait()
        except queue.Empty:
            return "ok"


class CompletionsServer:
    """Runs in a thread; `seen` holds the requests, `released` lets the hanging ones go."""

    def __init__(self, model, tokenizer, **behaviour):
        self.model, self.tokenizer, self.how = model.eval(), tokenizer, Behaviour(**behaviour)
        self.seen: list[Seen] = []
        self.hanging, self.released, self.lock = threading.Event(), threading.Event(), threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()

    def fail(self, *faults: str) -> None:
        for fault in faults:
            self.how.faults.put(fault)

    def prompts(self) -> list[list[int]]:
        """Every prompt that was sent, in order."""
        return [
            p
            for seen in self.seen
            for p in (
                seen.body["prompt"] if isinstance(seen.body["prompt"][0], list) else [seen.body["prompt"]]
            )
        ]

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    @torch.no_grad()
    def score(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities after each token: [T, V]."""
        with self.lock:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return torch.log_softmax(logits.float(), -1) * self.how.scale

    def text(self, number: int) -> str:
        return self.tokenizer.decode([number])

    def legacy(self, ids: list[int], body: dict) -> dict:
        """The shape of vLLM and SGLang."""
        by_id = body.get("return_tokens_as_token_ids") and self.how.style == "vllm"
        scored, k = self.score(ids), body["logprobs"]
        generated = int(scored[-1].argmax())
        tokens = [*ids, generated] if body.get("echo") else [generated]
        rows = [None, *scored] if body.get("echo") else [scored[-1]]

        def name(number: int) -> str:
            return f"token_id:{number + self.how.shift}" if by_id else self.text(number + self.how.shift)

        tops = []
        for token, row in zip(tokens, rows, strict=True):
            top = None
            if row is not None:
                listed = [token] if self.how.style == "vllm" else []  # vLLM puts the token itself first
                listed += row.topk(min(k, len(row))).indices.tolist()
                top = {}
                for number in listed:
                    top.setdefault(name(number), row[number].item())
            tops.append(top)
        return {
            "tokens": [name(t) for t in tokens],
            "top_logprobs": tops,
            "token_logprobs": [],
            "text_offset": [],
        }

    def chat_like(self, ids: list[int], body: dict) -> dict:
        """The shape of llama.cpp."""
        row = self.score(ids)[-1]
        top = row.topk(min(body.get("n_probs", body["logprobs"]), len(row)))

        def entry(number: int) -> dict:
            text = self.text(number)
            return {"id": number, "token": text, "bytes": list(text.encode()), "logprob": row[number].item()}

        listed = [entry(number) for number in top.indices.tolist()]
        return {"content": [{**listed[0], "top_logprobs": listed}]}

    def refusal(self, body: dict) -> tuple[int, str] | None:
        style = self.how.style
        if style in ("llama", "strict") and body.get("echo"):
            return (500, "Only no echo is supported") if style == "llama" else (400, "echo is not available")
        if style == "strict" and ("n_probs" in body or "return_tokens_as_token_ids" in body):
            return 400, "Unrecognized request argument"
        if body["logprobs"] > self.how.max_logprobs:
            most = self.how.max_logprobs
            return (
                400,
                f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: {most}",
            )
        return (404, f"The model `{body['model']}` does not exist.") if body["model"] != "big" else None

    def answer(self, body: dict) -> dict:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if self.how.style == "deaf":
            body = {**body, "echo": False}
        shape = self.chat_like if self.how.style in ("llama", "deaf") else self.legacy
        choices = [{"index": i, "text": "", "logprobs": shape(ids, body)} for i, ids in enumerate(prompts)]
        return {"object": "text_completion", "choices": choices[::-1]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: CompletionsServer

    def do_POST(self):
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        authorization = self.headers.get("Authorization", "")
        with owner.lock:
            owner.seen.append(Seen(body, authorization, time.monotonic()))
            fault = owner.how.next_fault()
        kind, _, detail = fault.partition(":")
        if kind == "hang":
            owner.hanging.set()
            owner.released.wait()
            self.close_connection = True
        elif kind == "reset":  # closing with data pending and no linger sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif kind == "drop":  # closed without a word
            self.close_connection = True
        elif kind.isdigit():
            self.send(int(kind), {"error": {"message": f"fault {kind}\nsecond line"}}, detail)
        elif owner.how.key and authorization != f"Bearer {owner.how.key}":
            self.send(401, {"error": {"message": f"Incorrect API key provided: {authorization[7:]}"}})
        elif owner.refusal(body):
            status, message = owner.refusal(body)
            self.send(status, {"error": {"message": message}})
        else:
            answer = owner.answer(body)
            if kind == "mute":
                answer["choices"][0]["logprobs"] = None
            self.send(200, answer, cut=kind == "cut", prose=kind == "prose")

    def send(self, status: int, answer: dict, retry_after: str = "", cut: bool = False, prose: bool = False):
        data = b"<html>a proxy's page</html>" if prose else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = True

    def log_message(self, *_):
        pass
