"""The remote teacher against a real server on the loopback: same loss as a live one, faults, and what is kept."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_gpt2, build_llama, sentences
from endpoint_server import CompletionsServer

from llm_finetuner.errors import ModelError, RecipeError, TrainingError
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.output import Want
from llm_finetuner.recipe import Teacher
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers import endpoint, remote_asker
from llm_finetuner.teachers.kinds import remote
from llm_finetuner.teachers.provider import Context

TASK = CausalLM()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return build_llama(len(tokenizer)).eval().requires_grad_(False)


@pytest.fixture
def student(tokenizer):
    return build_gpt2(len(tokenizer))


@pytest.fixture
def serve(teacher, tokenizer):
    servers = []

    def start(model=teacher, **behaviour) -> CompletionsServer:
        servers.append(CompletionsServer(model, tokenizer, **behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def rows_of(tokenizer, count: int, seed: int = 3):
    import datasets

    ids = [tokenizer(text)["input_ids"] for text in sentences(count, seed=seed)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(i) for i in ids],
            "labels": [[-100] * 2 + i[2:] for i in ids],
        }
    )


@pytest.fixture
def ask(tmp_path, student, tokenizer):
    """Builds the provider; notes go to `ask.notes`."""
    notes = []

    def build(server, name="big", tokenizer=tokenizer, **options):
        context = Context(TASK, student, tokenizer, torch.device("cpu"), notes.append)
        options = {"url": server.url, "cache": str(tmp_path / "cache"), "timeout": 30.0, **options}
        return remote(Teacher(name, kind="remote"), context, **options)

    build.notes = notes
    return build


@pytest.fixture
def batch(tokenizer):
    return TASK.collate(list(rows_of(tokenizer, 5)))


def answers_of(provider, batch) -> torch.Tensor:
    said = provider(batch, Want())
    return said.head(said.rows[:])


def live_answers(teacher, batch) -> torch.Tensor:
    with torch.no_grad():
        said = TASK.run(teacher, batch, Want())
        return torch.log_softmax(said.head(said.rows).float(), -1)


def loss_and_gradient(student, batch, answers) -> tuple[torch.Tensor, torch.Tensor]:
    student.zero_grad()
    said = TASK.run(student, batch, Want())
    loss = forward_kl(said.head(said.rows), answers, temperature=2.0).mean()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in student.parameters()])


@pytest.mark.parametrize("style", ["vllm", "llama", "deaf"])
def test_the_whole_vocabulary_is_the_live_teacher(serve, ask, teacher, student, batch, style):
    provider = ask(serve(style=style), k=10**6)
    loss, gradient = loss_and_gradient(student, batch, answers_of(provider, batch))
    wanted_loss, wanted = loss_and_gradient(student, batch, live_answers(teacher, batch))
    assert loss == pytest.approx(wanted_loss.item(), rel=1e-5)
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()
    said, own = provider(batch, Want()), TASK.run(student, batch, Want())
    assert torch.equal(said.targets, own.targets) and torch.equal(said.examples, own.examples)
    assert len(said.rows) == len(own.targets) and len(said.rows[2:5]) == 3


@pytest.mark.parametrize("style", ["vllm", "sglang", "llama", "strict"])
def test_few_tokens_keep_their_probabilities_and_the_tail(serve, ask, teacher, tokenizer, batch, style):
    teacher, broken = (
        copy.deepcopy(teacher),
        ["\ufffd" in tokenizer.decode([i]) for i in range(len(tokenizer))],
    )
    # as in a trained model, pieces of characters are improbable: endpoints that give texts cannot tell them apart
    teacher.lm_head.bias = torch.nn.Parameter(-20.0 * torch.tensor(broken).float())
    answers, live = answers_of(ask(serve(teacher, style=style), k=7), batch), live_answers(teacher, batch)
    listed = live.topk(7).indices
    assert torch.allclose(answers.gather(1, listed), live.gather(1, listed), atol=1e-5)
    tail, wanted = ((1 - a.gather(1, listed).exp().sum(1)) for a in (answers, live))
    assert torch.allclose(tail, wanted, atol=1e-5) and wanted.min() > 0.01
    assert torch.allclose(answers.logsumexp(-1), torch.zeros(len(live)), atol=1e-5)


def test_several_sequences_go_in_one_request_and_one_probe_is_made(serve, ask, batch):
    server = serve()
    answers_of(ask(server, batch=3), batch)
    assert sorted(len(seen.body["prompt"]) for seen in server.seen) == [1, 2, 3]
    assert all(seen.body["logprobs"] == 50 and seen.body["echo"] for seen in server.seen)
    own = [
        ids[: int(on.sum())].tolist()
        for ids, on in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(server.prompts()[1:]) == sorted(own)


def test_a_server_without_echo_is_asked_only_for_counted_positions_and_the_cost_is_told(
    serve, ask, batch, tokenizer
):
    server = serve(style="llama")
    provider = ask(server)
    provider.check(rows_of(tokenizer, 5))
    asked = len(server.seen)
    answers_of(provider, batch)
    assert len(server.seen) - asked == TASK.count(batch)
    assert any("every position is a request" in note for note in ask.notes)
    assert any(f"{TASK.count(batch)} requests" in note for note in ask.notes)


def test_nothing_is_asked_twice(serve, ask, batch, tokenizer):
    server = serve()
    first = answers_of(ask(server), batch)
    asked = len(server.seen)
    again = ask(server)
    again.check(rows_of(tokenizer, 5))
    one = {key: value[3:4] for key, value in batch.items()}  # another batch size and order
    assert torch.equal(answers_of(again, batch), first)
    assert torch.equal(
        answers_of(again, one), first[(batch["labels"][:3, 1:] != -100).sum() :][: TASK.count(one)]
    )
    assert len(server.seen) == asked and "nothing will be asked" in ask.notes[-1]
    answers_of(ask(server, k=20), batch)
    assert len(server.seen) > asked


def test_positions_that_count_later_are_asked_then(serve, ask, batch):
    server = serve(style="llama")
    provider = ask(server)
    answers_of(provider, batch)
    more = {**batch, "labels": torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)}
    asked = len(server.seen)
    answers_of(provider, more)
    assert len(server.seen) - asked == TASK.count(more) - TASK.count(batch)


KILLED = """
import json, sys, torch
from llm_finetuner.output import Want
from llm_finetuner.recipe import Teacher
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.provider import Context
from llm_finetuner.teachers.kinds import remote
url, cache, rows, size = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])

class Student(torch.nn.Module):
    def get_output_embeddings(self):
        return torch.nn.Linear(1, size)

task = CausalLM()
context = Context(task, Student(), None, torch.device("cpu"), print)
provider = remote(Teacher("big", kind="remote"), context, url=url, cache=cache)
for row in rows:
    provider(task.collate([row]), Want())
"""


def test_a_killed_run_asks_only_for_what_is_missing(serve, ask, tokenizer, tmp_path):
    server, rows = serve(), list(rows_of(tokenizer, 6))
    server.fail(*["ok"] * 4, "hang")  # the probe, three sequences, and then it is killed
    arguments = [server.url, str(tmp_path / "cache"), json.dumps(rows), str(len(tokenizer))]
    run = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=Path(__file__).parents[1])
    assert server.hanging.wait(120)
    run.kill()
    run.wait()
    server.seen.clear()
    provider = ask(server, tokenizer=None)
    for row in rows:
        answers_of(provider, TASK.collate([row]))
    assert server.prompts()[1:] == [row["input_ids"] for row in rows[3:]]


def test_damaged_answers_are_asked_again(serve, ask, batch, tmp_path):
    server = serve()
    first = answers_of(ask(server), batch)
    files = sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".json")
    assert len(files) == 5
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)
    files[1].write_bytes(files[1].read_bytes()[:-9])
    files[2].write_bytes(b"")
    files[3].with_name(files[3].name + ".0123").write_bytes(b"left by a kill")
    server.seen.clear()
    assert torch.equal(answers_of(ask(server), batch), first)
    assert len(server.prompts()) == 1 + 3


def test_passing_faults_are_survived(serve, ask, teacher, batch):
    server = serve()
    server.fail("ok", "503", "reset", "cut", "drop", "prose", "500", "ok")
    answers = answers_of(ask(server, k=10**6, retries=6), batch)
    assert torch.allclose(answers, live_answers(teacher, batch), atol=1e-4)
    assert len(server.seen) == 8


def test_a_key_is_sent_and_not_kept(serve, ask, batch, monkeypatch, tmp_path):
    server = serve(key="sk-right")
    monkeypatch.setenv("TEACHER_KEY", "sk-right")
    answers_of(ask(server, key_variable="TEACHER_KEY"), batch)
    assert all(seen.authorization == "Bearer sk-right" for seen in server.seen)
    assert b"sk-right" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_key_in_the_clear_is_told(ask, monkeypatch, serve):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    ask(serve())
    assert not ask.notes
    ask(serve(), url="http://teacher.example:8000")
    assert "unencrypted" in ask.notes[0]


def test_a_failed_batch_keeps_what_came(serve, ask, batch):
    server = serve()
    server.fail("ok", "ok", "ok", *["503"] * 9)
    with pytest.raises(TrainingError, match="503"):
        answers_of(ask(server, batch=1, concurrency=1, retries=1), batch)
    while not server.how.faults.empty():
        server.how.faults.get()
    server.seen.clear()
    answers_of(ask(server, batch=1), batch)
    assert len(server.prompts()) == 1 + 3


def test_refusals_say_what_to_do(serve, ask, batch):
    with pytest.raises(ModelError, match="--max-logprobs 50") as error:
        answers_of(ask(serve(max_logprobs=20)), batch)
    assert "greater than max allowed: 20" in error.value.what
    with pytest.raises(ModelError, match="does not exist") as error:
        answers_of(ask(serve(), name="small"), batch)
    assert "/v1/models" in error.value.hint


def test_another_tokenizer_is_found_out(serve, ask, batch):
    for style in ("vllm", "sglang"):
        with pytest.raises(ModelError, match="another tokenizer than the student: token"):
            answers_of(ask(serve(style=style, shift=1)), batch)


def test_numbers_that_are_no_distribution_are_found_out(serve, ask, batch):
    with pytest.raises(ModelError, match="sum to"):
        answers_of(ask(serve(scale=0.3)), batch)


def test_answers_without_log_probabilities_are_found_out(serve, ask, batch):
    server = serve()
    server.fail("ok", "mute")
    with pytest.raises(ModelError, match="speaks of 0"):
        answers_of(ask(server), batch)
    server = serve(style="llama")
    server.fail("ok", "ok", *["mute"] * remote_asker.TRIES)  # two probes, then one position
    with pytest.raises(ModelError, match="after token"):
        answers_of(ask(server, concurrency=1), batch)


def test_probability_that_texts_do_not_tell_apart_is_an_error(serve, ask, tokenizer):
    batch = TASK.collate(list(rows_of(tokenizer, 20)))
    with pytest.raises(ModelError, match="do not tell apart"):
        answers_of(ask(serve(style="sglang"), k=len(tokenizer)), batch)
    with pytest.raises(ModelError, match="no tokenizer"):
        answers_of(ask(serve(style="sglang"), tokenizer=None), batch)


def test_nothing_that_counts_asks_nothing(serve, ask, batch, tokenizer):
    server = serve()
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert answers_of(ask(server), nothing).shape == (0, len(tokenizer))
    assert not server.seen


@pytest.mark.parametrize(
    ("options", "said"),
    [({"url": ""}, "needs url"), ({"url": "ftp://x"}, "not an http address"), ({"k": 0}, "k must be"),
     ({"url": "http://me:secret@host"}, "password"), ({"name": ""}, "needs a name"), ({"timeout": 0}, "timeout")],
)  # fmt: skip
def test_wrong_settings_are_refused_at_once(serve, ask, options, said):
    with pytest.raises(RecipeError, match=said) as error:
        ask(serve(), **options)
    assert "secret" not in str(error.value)


def test_hidden_states_are_refused(serve, ask, batch):
    with pytest.raises(RecipeError, match="probabilities only"):
        ask(serve())(batch, Want(layers=(0,)))
