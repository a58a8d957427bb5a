"""Sequence regression through the engine: steps against float64 references, delays, rows without targets."""

import copy

import numpy as np
import pytest
import torch
from sequences import BIG, arrays, model, rows
from task_steps import gradient_of, gradient_of_step

from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.data import signals
from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.models.complex_projection import ComplexProjection
from llm_finetuner.optim import SLOW, SLOW_SHARE, set_apart, set_rate
from llm_finetuner.tasks.sequence_regression import SequenceRegression

TASK = "sequence_regression"
METHOD = "regression_distillation"


def said(net, data, blocks: bool = False):
    """Every row by itself at the samples that count: answers [N], and the states behind each block [[N, H]]."""
    delay, answers, states = net.config.delay, [], [[] for _ in net.layers]
    for number in range(len(data)):
        row = data[number]
        x = torch.nn.functional.pad(torch.from_numpy(row["inputs"]), (0, 0, 0, delay))[None]
        hooks = [
            layer.register_forward_hook(
                lambda _m, _i, o, to=kept, counted=row["counted"]: to.append(o[0, delay:][counted])
            )
            for layer, kept in zip(net.layers, states, strict=True)
        ]
        answers.append(net(x)[0, delay:, 0][row["counted"]])
        for hook in hooks:
            hook.remove()
    return (torch.cat(answers), [torch.cat(kept) for kept in states]) if blocks else torch.cat(answers)


def truth(data):
    return torch.cat([torch.from_numpy(data[n]["targets"][data[n]["counted"], 0]) for n in range(len(data))])


def squared(a, b):
    """The mean over real and imaginary parts."""
    return (a - b).abs().square().mean() / 2


def close(got, want, tolerance: float = 1e-9):
    scale = max(g.abs().max() for g in want.values() if g is not None)
    for name, gradient in want.items():
        share = SLOW_SHARE if name.rpartition(".")[2] in SLOW else 1
        apart = got[name] - (0 if gradient is None else share * gradient)
        assert apart.abs().max() < tolerance * scale, name


def step(tmp_path, student, teacher, data, batch=6, accumulation=2, **options):
    method = METHOD if teacher is not None else "fine_tuning"
    return gradient_of_step(TASK, tmp_path, student, teacher, data, method, batch, accumulation, **options)


@pytest.mark.parametrize(("batch", "accumulation"), [(12, 1), (6, 2), (1, 12)])
def test_a_step_is_the_gradient_of_the_guide_s_loss_however_it_is_cut(tmp_path, batch, accumulation):
    student, teacher, data = model(), model(7, **BIG), rows()
    got, record = step(tmp_path, student, teacher, data, batch, accumulation, alpha=0.6, beta=0.3, gamma=0)
    own, told = said(student, data), said(teacher, data).detach()
    to_truth, to_teacher = squared(own, truth(data)), squared(own, told)
    close(got, gradient_of(0.6 * to_truth + 0.3 * to_teacher, student))
    assert record["mse"] == pytest.approx(to_truth.item(), rel=1e-12)
    assert record["output_mse"] == pytest.approx(to_teacher.item(), rel=1e-12)


@pytest.mark.parametrize("gate", ["off", "channel"])
def test_plain_training_is_the_mean_squared_error_of_the_samples_that_count(tmp_path, gate):
    student, data = model(gate=gate), rows()
    got, record = step(tmp_path, student, None, data)
    loss = squared(said(student, data), truth(data))
    close(got, gradient_of(loss, student))
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-12)
    other = copy.deepcopy(data)
    other.targets[:, :3] = 99  # samples that do not count
    again, _ = step(tmp_path, student, None, other)
    assert all(torch.equal(got[name], again[name]) for name in got)


@pytest.mark.parametrize(("own", "theirs"), [(3, 0), (0, 5), (6, 4)])
def test_a_delayed_model_answers_each_position_later_and_its_states_are_read_there(tmp_path, own, theirs):
    """Up to the last sample of a row, where zeros stand behind the end."""
    student = model(bidirectional=not own, delay=own)
    teacher = model(7, bidirectional=not theirs, delay=theirs, num_layers=3)
    data = rows((3, 20))
    got, record = step(
        tmp_path, student, teacher, data, alpha=0.5, beta=0.4, gamma=0.3, feature_layers=[[0, 1], [1, 2]]
    )
    (answers, states), (told, heard) = said(student, data, True), said(teacher, data, True)
    loss = 0.5 * squared(answers, truth(data)) + 0.4 * squared(answers, told.detach())
    loss = loss + 0.3 * feature_of(states, heard, data, [(0, 1), (1, 2)])  # projections start as the identity
    close(got, gradient_of(loss, student))
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-9)


def feature_of(states, heard, data, pairs, maps=None):
    count, total = len(data), 0.0
    for s, t in pairs:
        own = states[s] if maps is None else states[s] @ maps[s].T
        own, other = own.unflatten(0, (count, -1)), heard[t].detach().unflatten(0, (count, -1))
        power = other.abs().square().mean((1, 2), keepdim=True)
        total = total + ((own - other).abs().square() / power).mean()
    return total / len(pairs)


def test_states_of_another_width_go_through_a_learned_complex_map(tmp_path):
    from llm_finetuner.learner import Learner
    from llm_finetuner.methods.regression import regression_distillation
    from llm_finetuner.teachers.live import Live

    student, teacher, data, task = model(), model(7, **BIG), rows(), SequenceRegression()
    scheme = regression_distillation(feature_layers=[[0, 1], [1, 2]])
    learner = Learner(task, student, scheme, Live(task, teacher)).double()
    assert {name: tuple(p.shape) for name, p in learner.projections.named_parameters()} == {
        "0.weight": (6, 4, 2), "1.weight": (6, 4, 2)
    }  # fmt: skip
    batch = task.collate([data[n] for n in range(len(data))])
    loss, _ = learner(batch, learner.provider(batch, learner.teacher_want))
    (answers, states), (told, heard) = said(student, data, True), said(teacher, data, True)
    maps = [torch.view_as_complex(learner.projections[name].weight) for name in ("0", "1")]
    want = 0.3 * squared(answers, truth(data)) + 0.5 * squared(answers, told.detach())
    want = want + 0.2 * feature_of(states, heard, data, [(0, 1), (1, 2)], maps)
    assert loss.item() / task.count(batch) == pytest.approx(want.item(), rel=1e-12)
    weights = [*student.parameters(), *learner.projections.parameters()]
    got, wanted = (torch.autograd.grad(x, weights) for x in (loss / task.count(batch), want))
    scale = max(g.abs().max() for g in wanted)
    assert all((a - b).abs().max() < 1e-10 * scale for a, b in zip(got, wanted, strict=True))
    assert all(g.abs().max() > 0 for g in got[-2:])  # it is learned


@pytest.mark.parametrize("start", ["linear", "orthogonal", "identity"])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (3, 5), (5, 3)])
def test_a_complex_projection_is_linear_over_complex_numbers(start, inputs, outputs):
    torch.manual_seed(0)
    made = ComplexProjection(inputs, outputs, start).double()
    z = torch.randn(7, inputs, dtype=torch.complex128)
    want = z @ torch.view_as_complex(made.weight).T
    assert torch.allclose(
        made(torch.view_as_real(z).flatten(1)), torch.view_as_real(want).flatten(1), atol=1e-12
    )
    weight = torch.view_as_complex(made.weight)
    gram = weight.mH @ weight if outputs >= inputs else weight @ weight.mH
    if start == "orthogonal" or (start == "identity" and inputs == outputs):
        assert torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-5)


def test_turning_the_phase_of_all_states_leaves_the_feature_term_as_it_is():
    """Angles are never compared: student and teacher turned together are as far apart as before."""
    from llm_finetuner.objectives.feature import hidden_nmse

    z, w = torch.randn(2, 9, 5, dtype=torch.complex128)
    examples, turn = (
        torch.tensor([0] * 4 + [1] * 5),
        torch.polar(torch.ones(1).double(), torch.tensor([3.1]).double()),
    )
    pairs = [torch.view_as_real(x.contiguous()).flatten(1) for x in (z, w, z * turn, w * turn)]
    assert torch.allclose(hidden_nmse(*pairs[:2], examples), hidden_nmse(*pairs[2:], examples), atol=1e-12)


def test_rows_without_targets_are_heard_from_the_teacher_alone(tmp_path):
    student, teacher, data = model(), model(7), rows(labelled=5)
    got, record = step(tmp_path, student, teacher, data, alpha=0.6, beta=0.3, gamma=0)
    own, told = said(student, data), said(teacher, data).detach()
    known = ~truth(data).real.isnan()
    errors = torch.where(known, own - torch.where(known, truth(data), 0), 0)
    loss = 0.6 * errors.abs().square().mean() / 2 + 0.3 * squared(own, told)
    close(got, gradient_of(loss, student))
    assert record["mse"] == pytest.approx((errors.abs().square().sum() / known.sum() / 2).item(), rel=1e-12)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-12)


def test_without_any_targets_the_teacher_is_all_there_is(tmp_path):
    student, teacher = model(), model(7)
    x, _ = arrays()
    data = signals.read((x, None), 0).part("train")
    vars(data.recording)["scales"] = (np.ones(2), np.ones(0))
    got, record = step(tmp_path, student, teacher, data, alpha=0.3, beta=0.5, gamma=0)
    close(got, gradient_of(0.5 * squared(said(student, data), said(teacher, data).detach()), student))
    assert record["mse"] is None
    with pytest.raises(DataError, match="nothing to learn without a teacher"):
        step(tmp_path, student, None, data)
    with pytest.raises(DataError, match="no row has targets"):
        evaluate(SequenceRegression(), student, data)


@pytest.mark.parametrize("labelled", [None, 7])
def test_the_figures_of_an_evaluation(labelled):
    net, teacher, data = model(), model(7), rows(labelled=labelled)
    found = evaluate(SequenceRegression(), net, data, teacher=teacher, batch_size=5)
    answers, told, y = said(net, data).detach(), said(teacher, data).detach(), truth(data)
    known = ~y.real.isnan()
    apart = squared(answers, told).item()
    answers, y = answers[known], y[known]
    nmse = (answers - y).abs().square().sum() / y.abs().square().sum()
    from llm_finetuner.benchmark.signal_tally import NMSE

    summary = NMSE.summary(found)
    assert summary["nmse_db"] == pytest.approx(10 * np.log10(nmse.item()))
    assert summary["nmse_db_low"] < summary["nmse_db"] < summary["nmse_db_high"]
    psnr = y.abs().max() ** 2 / (answers - y).abs().square().mean()
    assert summary["psnr"] == pytest.approx(10 * np.log10(psnr.item()))
    coherence = abs((y.conj() * answers).sum()) / (y.norm() * answers.norm())
    assert summary["coherence"] == pytest.approx(coherence.item())
    assert summary["mse_to_teacher"] == pytest.approx(apart)
    assert NMSE.retained(0.0, -10.0) == 0 and NMSE.retained(-10.0, -10.0) == 100


def test_models_and_rows_that_do_not_fit_are_refused():
    task, data = SequenceRegression(), rows()
    with pytest.raises(DataError, match="2 channels of input, the model reads 3"):
        task.check_inputs(data, model(input_dim=3))
    with pytest.raises(DataError, match="4 channels of input, complex ones read as pairs"):
        task.check_inputs(data, model(complex_valued=False))
    with pytest.raises(DataError, match="a target is 2 real numbers, an answer of the model 4"):
        task.check_inputs(data, model(output_dim=2))
    task.check_inputs(data, model(complex_valued=False, input_dim=4, output_dim=2))
    with pytest.raises(ModelError, match="answers 2 real numbers a sample, the teacher 4"):
        task.check_pair(model(), model(output_dim=2))
    with pytest.raises(ModelError, match="trained whole"):
        task.check_adapter(model())


def test_a_real_model_reads_complex_channels_as_pairs(tmp_path):
    net, data = model(complex_valued=False, input_dim=4, output_dim=2), rows()
    got, record = step(tmp_path, net, None, data)
    x = torch.view_as_real(
        torch.stack([torch.from_numpy(data[n]["inputs"]) for n in range(len(data))])
    ).flatten(-2)
    answers = torch.view_as_complex(net(x)[:, data.counted].contiguous()).flatten()
    close(got, gradient_of(squared(answers, truth(data)), net))


def test_poles_and_time_steps_learn_slowly_and_nothing_of_a_mixer_decays():
    net = model(double=False)
    groups = {name: p for name, p in net.named_parameters()}
    from llm_finetuner.optim import adamw

    optimizer = adamw(list(net.parameters()), 0.1, torch.device("cpu"))
    set_apart(optimizer, net)
    set_rate(optimizer, 1e-2)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(found) == len(groups)
    for name, p in groups.items():
        last = name.rpartition(".")[2]
        in_mixer = ".mixer." in name
        assert found[id(p)][0] == pytest.approx(3e-3 if last in ("log_dt", "decay", "frequency") else 1e-2), (
            name
        )
        assert found[id(p)][1] == (0.0 if in_mixer or p.dim() <= 1 else 0.1), name


def test_a_model_learns_in_numbers_of_size_1_whatever_the_units_of_the_data(tmp_path):
    """The same step from data in other units; a model keeps its scale, and answers in the units of the data."""
    x, y = arrays()
    found = []
    for units in (1.0, 1000.0):
        data = signals.read((units * x, y / units), 0).part("train")
        student, teacher = model(gate="channel"), model(7)
        SequenceRegression().fit(teacher, data, 0)
        found.append((*step(tmp_path, student, teacher, data), student, data))
    (one, record, *_), (other, again, _, data) = found
    assert record["loss"] == pytest.approx(again["loss"], rel=1e-9)
    close({n: g * (SLOW_SHARE if n.rpartition(".")[2] in SLOW else 1) for n, g in one.items()}, other, 1e-9)
    assert data.recording.scales[0] == pytest.approx(1000 * np.sqrt((np.abs(x) ** 2).mean((0, 1))))
    task, net = SequenceRegression(), model()
    task.fit(net, data, 0)
    (said_once,) = task.predict(net, None, [data[0]["inputs"]], None)
    bare = copy.deepcopy(net)
    bare.set_scales([1.0, 1.0], [1.0])
    read = torch.from_numpy(data[0]["inputs"] / data.recording.scales[0])[None]
    want = bare(read)[0].detach().numpy() * data.recording.scales[1]
    assert said_once == pytest.approx(want)
    assert net(torch.from_numpy(data[0]["inputs"])[None])[0].detach().numpy() == pytest.approx(want)
    kept = list(net.config.input_scale)
    task.fit(net, signals.read((x, y), 0).part("train"), 0)
    assert net.config.input_scale == kept


def test_scores_are_in_the_units_of_the_data_whatever_else_lies_beside_the_rows():
    """Two channels of unequal size: energy of error over energy of truth, the same from any folder."""
    net, teacher = model(output_dim=2), model(7, output_dim=2)
    x, y = arrays()
    y = np.concatenate([y, 100 * y[::-1]], 2)
    answers, told = (one(torch.from_numpy(x)).detach().numpy() for one in (net, teacher))
    for others in (0, 9):  # rows to train on, of other sizes
        held = {
            "inputs": np.concatenate([x, x[:others]]),
            "targets": np.concatenate([y, [1e3, 7] * y[:others]]),
        }
        data = signals.read(held, 0).part("train").select(range(len(x)))
        found = evaluate(SequenceRegression(), net, data, teacher=teacher)
        assert found.nll.sum() / found.energy.sum() == pytest.approx(
            (np.abs(answers - y) ** 2).sum() / (np.abs(y) ** 2).sum()
        )
        assert found.figures["coherence"] == pytest.approx(
            abs(np.vdot(y, answers)) / np.linalg.norm(y) / np.linalg.norm(answers)
        )
        assert found.figures["mse_to_teacher"] == pytest.approx((np.abs(answers - told) ** 2).mean() / 2)
