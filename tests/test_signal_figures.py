"""What reports tell of sequences: images, profiles, SSIM and responses to single points, against their sources."""

import base64
import json

import numpy as np
import pytest
import torch
from sequences import arrays, model

from llm_finetuner.benchmark import focus
from llm_finetuner.benchmark.focusers import Zeros
from llm_finetuner.benchmark.quality import evaluate_all
from llm_finetuner.benchmark.verdict import Entry, verdict
from llm_finetuner.data import sar, sar_files, signals
from llm_finetuner.data.sar_scenes import Scene
from llm_finetuner.report.write import write
from llm_finetuner.tasks.sequence_regression import SequenceRegression

LENGTH = 40


def told_of(nets, data, shown):
    return SequenceRegression().details(nets, data, shown)["signals"]


def test_images_profiles_and_ssim_are_of_the_answers():
    net, (x, y) = model(double=False), arrays(6, LENGTH, labelled=5)
    data = signals.read((x, y), 0).part("train")
    data = signals.replace(data, counted=slice(4, 30))
    told = told_of({"net": net, "other": model(3, double=False)}, data, ["net"])
    assert (told["rows"], told["first"], told["channels"], told["points"]) == (5, 4, 1, None)
    with torch.no_grad():
        said = net(torch.from_numpy(x[:5]).to(torch.complex64))[:, 4:30, 0].abs().double().numpy()
    truth = np.abs(y[:5, 4:30, 0])
    assert told["peak"] == pytest.approx(truth.max()) and set(told["ssim"]) == {"net", "other"}
    assert told["ssim"]["net"] == pytest.approx(focus.ssim(said, truth, truth.max()), abs=1e-6)
    image = told["images"]
    assert (image["rows"], image["samples"], set(image["grey"])) == (5, 26, {"truth", "net"})
    for name, size in (("truth", truth), ("net", said)):
        decibels = 20 * np.log10(size / truth.max()).clip(-50, 0)
        grey = np.frombuffer(base64.b64decode(image["grey"][name]), np.uint8).reshape(5, 26)
        assert np.abs(grey / 255 * 50 - 50 - decibels.clip(-50)).max() < 0.11
    for number, example in zip((0, 2), told["examples"], strict=True):
        assert example["row"] == number and list(example["answers"]) == ["net"]
        for line, size in ((example["truth"], truth), (example["answers"]["net"], said)):
            assert line == pytest.approx((20 * np.log10(size[number] / truth.max())).clip(-50), abs=1e-3)


def test_real_numbers_are_shown_as_they_are_and_short_rows_have_no_ssim():
    net = model(double=False, complex_valued=False, output_dim=1)
    x, y = arrays(4, LENGTH, complex_valued=False)
    data = signals.read((x, y), 0).part("train")
    told = told_of({"net": net}, data, ["net"])
    assert told["images"] is None and told["examples"][0]["truth"] == pytest.approx(y[0, :, 0], abs=1e-4)
    short = signals.replace(data, counted=slice(0, focus.WINDOW - 1))
    assert told_of({"net": net}, short, ["net"])["ssim"] == {"net": None}


def test_a_real_model_of_complex_numbers_is_shown_as_they_are():
    """Two real outputs are one complex number."""
    net = model(double=False, complex_valued=False, input_dim=4, output_dim=2)
    data = signals.read(arrays(3, LENGTH), 0).part("train")
    (zeros,) = SequenceRegression().simple_models(data)
    told = told_of({"net": net, "zeros": zeros[1]}, data, ["net", "zeros"])
    assert told["examples"][0]["answers"]["zeros"] == [-50.0] * LENGTH
    assert len(set(told["examples"][0]["answers"]["net"])) > LENGTH / 2


@pytest.fixture(scope="module")
def columns(tmp_path_factory) -> signals.Recording:
    folder = tmp_path_factory.mktemp("columns")
    sar_files.write(folder, sar.AIRBORNE, Scene(length=160), {"train": 8, "validation": 2, "test": 6}, 0)
    return signals.read(folder, 0.1)


class Blurred(Zeros):
    """The exact filter, each sample beside its neighbours with weights of 1/2, and turned by 30 degrees."""

    def __init__(self, exact):
        super().__init__(exact.config)
        self.exact = exact

    def forward(self, x):
        y = self.exact(x)
        return (y + (y.roll(1, 1) + y.roll(-1, 1)) / 2) * np.exp(1j * np.pi / 6)


def test_responses_to_points_are_those_of_the_exact_filter_and_worse_for_a_worse_one(columns):
    simple = dict(SequenceRegression().simple_models(columns.part("train")))
    nets = {"exact": simple["matched filter"], "zeros": simple["zeros"]}
    nets["blurred"] = Blurred(simple["matched filter"])
    told = told_of(nets, columns.part("test"), ["exact", "zeros", "blurred"])["points"]
    assert told["of"]["zeros"] is None and set(told["profiles"]["of"]) == {"ideal", "exact", "blurred"}
    assert told["ideal"]["width"] == 1 and told["ideal"]["location"] < 0.02 and told["ideal"]["phase"] < 0.5
    assert told["of"]["exact"] == pytest.approx(told["ideal"], abs=1e-2)
    blurred = told["of"]["blurred"]
    assert blurred["phase"] == pytest.approx(30, abs=0.1) and blurred["width"] > 1.15
    assert blurred["samples"] == pytest.approx(blurred["width"] * told["ideal"]["samples"], rel=0.01)
    offsets, line = np.array(told["profiles"]["offsets"]), np.array(told["profiles"]["of"]["ideal"])
    assert offsets[np.argmax(line)] == 0 and max(line) == 0
    inside = line > -3.01
    assert np.ptp(offsets[inside]) == pytest.approx(told["ideal"]["samples"], abs=0.5)


def test_the_report_draws_and_lists_them(columns, tmp_path):
    shape = {"bidirectional": True, "double": False}
    teacher, student = model(1, **shape), model(2, gate="off", **shape)
    task, test = SequenceRegression(), columns.part("test")
    entries = [
        Entry("teacher", "teacher", teacher, None),
        *(Entry(name, "simple", net, None) for name, net in task.simple_models(columns.part("train"))),
        Entry("student", "distilled", student, None, None, 3, 1.0),
    ]
    said = verdict(entries, task, test)
    write(said, {}, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["signals"] == said["signals"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    titles = [part.split("</h2>")[0] for part in page.split("<h2>")[1:]]
    assert {"Images", "Profiles", "Likeness and responses to a point"} <= set(titles)
    assert page.count("Image of") == 3 and page.count("Profile of row") == 4 and "href" not in page
    assert len(page.encode()) < 1_000_000
    notes = (tmp_path / "report.md").read_text(encoding="utf-8")
    ssim = said["signals"]["ssim"]["student"]
    assert f"| student | {ssim:.3f} | " in notes and "| zeros | " in notes
    assert f"{said['signals']['points']['ideal']['pslr']:.1f}" in notes
    best = evaluate_all(task, {"student": student}, test)["student"]
    line = next(line for line in said["models"] if line["name"] == "student")
    assert line["nmse_db"] == pytest.approx(task.measure.value(best))


def test_a_picture_holds_every_shade_in_its_place():
    from llm_finetuner.report import svg

    x, y = svg.Scale(0, 3, 10, 40), svg.Scale(0, 2, 5, 25)
    drawn = svg.pixels([bytes([255, 255, 0]), bytes([0, 128, 128])], x, y)
    assert 'transform="translate(10 5) scale(10 10)"' in drawn
    assert 'stroke-opacity="1.00" d="M0 0.5h2"' in drawn and 'd="M1 1.5h2"' in drawn
    assert drawn.count("<path") == 2  # no ink, no line
