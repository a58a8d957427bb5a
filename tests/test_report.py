"""The report of a real verdict: well-formed, self-contained, escaped, and true to its numbers."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from benchmark_models import prepared, texts, tiny_llama, tiny_tokenizer, train

from llm_finetuner.benchmark.forecast_tally import MSE
from llm_finetuner.benchmark.measure import perplexity
from llm_finetuner.benchmark.verdict import Entry, verdict
from llm_finetuner.recipe import Model, Recipe, Teacher
from llm_finetuner.report import charts, series_charts, svg, table
from llm_finetuner.report.write import compared, fenced, markdown, write
from llm_finetuner.tasks.causal_lm import CausalLM

VOID = {"meta", "line", "path", "circle", "polygon", "i", "br", "wbr"}
NASTY = "<script>alert('x')</script> | a\\b `code` **bold** & \"quoted\" https://example.org/x.js"
MEASURE = perplexity("a token", "tokens").about()
RECIPE = Recipe(
    method="vanilla_distillation", student=Model("students/<b>small</b>"), teacher=Teacher("teachers/large")
)


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def said() -> dict:
    """A verdict with two distilled students, of prompts and references that try to break the page."""
    tokenizer = tiny_tokenizer()
    rows, lessons = prepared(tokenizer, texts(40, seed=7)), prepared(tokenizer, texts(60))
    trained = {steps: train(tiny_llama(len(tokenizer), width=16), lessons, steps) for steps in (0, 6, 20)}
    teacher = train(tiny_llama(len(tokenizer), width=32), lessons, 30)
    entries = [
        Entry("teacher", "teacher", teacher, tokenizer),
        Entry("untouched", "untouched", trained[0], tokenizer),
        Entry("kd <script>", "distilled", trained[20], tokenizer, None, 20, 3.0),
        Entry("kd_2 | x", "distilled", trained[6], tokenizer, None, 6, 1.0),
        Entry("ce", "baseline_steps", trained[6], tokenizer, None, 6, 200.0),
    ]
    return verdict(entries, CausalLM(), rows, [NASTY, "the cat"], [NASTY, "sat"], max_new_tokens=6)


def history(steps: int, scale: float = 1.0) -> list[dict]:
    records = [
        {"step": s, "cross_entropy": 5 * scale / s, "forward_kl": 2 / s, "loss": 3 / s}
        for s in range(1, steps)
    ]
    for record in records[9::10]:
        record["eval_loss"] = record["cross_entropy"] + 0.1
    return records


HISTORIES = {"kd <script>": history(400), "ce": history(50, 1.2), "empty": []}


@pytest.fixture(scope="module")
def folder(said, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    assert write(said, HISTORIES, path, RECIPE) == path / "report.html"
    return path


def test_the_page_is_well_formed_and_needs_nothing_else(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = read(page)
    assert {"h1", "table", "svg", "figure", "pre"} <= set(reader.tags)
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & set(reader.tags)
    assert not {"src", "href", "xlink:href", "srcset", "action"} & {
        name for name, _value in reader.attributes
    }
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "prefers-color-scheme: dark" in style
    assert len(page.encode()) < 1_000_000


def test_the_sentence_comes_first_and_the_rest_in_order(folder, said):
    page = (folder / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    text = " ".join("".join(read(page).text).split())
    beginning = [text.index(said["sentence"]), text.index(said["warnings"][0]), text.index("The models")]
    assert beginning == sorted(beginning)
    order = [
        "The models",
        "Differences in perplexity",
        "Training",
        "Quality for its price",
        "Completions",
        "Settings",
    ]
    assert re.findall("<h2>(.*?)</h2>", page) == [*order, "How the numbers were made"]
    assert said["findings"][1]["sentence"] in text
    for formula in said["formulas"].values():
        assert " ".join(formula.split()) in text


def test_what_users_wrote_is_shown_and_never_run(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    text = "".join(read(page).text)
    assert NASTY in text and "students/<b>small</b>" in text
    assert text.count("kd <script>") >= 5
    notes = (folder / "report.md").read_text(encoding="utf-8")
    outside_of_code = re.sub(r"```.*?```", "", notes, flags=re.DOTALL)
    assert "<script>" not in outside_of_code and "kd\\_2 \\| x" in outside_of_code
    table_lines = [line for line in outside_of_code.splitlines() if line.startswith("| perplexity")]
    assert len(table_lines) == 1 and table_lines[0].count("|") == 7


def test_metrics_are_the_verdict(folder, said, tmp_path):
    assert json.loads((folder / "metrics.json").read_text()) == said
    broken = json.loads(json.dumps(said))
    broken["models"][1] |= {"perplexity": math.inf, "perplexity_high": math.nan, "loss": math.inf}
    write(broken, {"ce": [{"step": 1, "loss": math.nan, "cross_entropy": math.inf}]}, tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert stored["models"][1]["perplexity"] is None


def test_a_verdict_with_little_in_it_is_written_too(said, tmp_path):
    line = next(model for model in said["models"] if model["role"] == "distilled")
    little = said | {
        "models": [line | {"retained": None, "rouge1": None, "rouge2": None, "rougeL": None}],
        "differences": [],
        "findings": said["findings"][:1],
        "warnings": [],
        "samples": [],
        "references": None,
        "compression": {"parameters": None, "bytes": None, "speed": None},
        "cost": {"ratio": None},
    }
    page = write(little, {}, tmp_path).read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "The models",
        "Quality for its price",
        "How the numbers were made",
    ]
    text = "".join(read(page).text)
    for absent in ("Beware", "ROUGE-L", "Beside"):
        assert absent not in text
    assert compared(little) == ""


def test_the_table_marks_the_best_and_shows_what_is_missing():
    empty = {key: None for figures in table.FIGURES.values() for key in figures}
    one = empty | {
        "perplexity": 12.345,
        "perplexity_low": 11.0,
        "perplexity_high": 14.0,
        "parameters": 1_234_567,
    }
    two = empty | {
        "perplexity": 10.0,
        "perplexity_low": None,
        "perplexity_high": None,
        "parameters": 1_234_567,
    }
    none = empty | {"perplexity_low": None}
    lines = {
        name: cells for _title, group in table.groups([one, two, none], MEASURE) for name, cells in group
    }
    assert lines["perplexity"] == [
        table.Cell("12.35", False, "11.00 to 14.00"),
        table.Cell("10.00", True),
        table.Cell(table.DASH),
    ]
    assert [cell.text for cell in lines["parameters"]] == ["1.23 M", "1.23 M", table.DASH]
    assert not any(cell.best for cell in lines["parameters"])  # nobody is best where all are alike
    assert "accuracy" not in lines


@pytest.mark.parametrize(
    "values, log",
    [([0.0, 1.0], False), ([3.0, 3.0], False), ([-2.0, 7.5], False), ([1e-3, 4e5], True), ([2.0, 2.0], True)],
)
def test_scales_keep_values_and_ticks_within(values, log):
    scale = svg.scale(values, 50, 450, log=log)
    assert all(50 <= scale(value) <= 450 for value in values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12 and ticks == sorted(set(ticks))
    assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_long_runs_are_averaged_not_cut():
    points = [(float(step), float(step)) for step in range(1, 1001)]
    thin = charts.thinned(points, 50)
    assert len(thin) == 50 and thin[0] == (10.5, 10.5) and thin[-1] == (990.5, 990.5)
    assert charts.thinned(points[:3], 50) == points[:3] and charts.thinned([], 50) == []


def test_names_do_not_overlap():
    heights = charts.apart([20, 21, 22, 200, 239], 10, 240)
    assert all(b - a >= charts.LABEL_HEIGHT for a, b in zip(heights, heights[1:], strict=False))
    assert heights[0] >= 10 and heights[-1] <= 240


def test_charts_show_each_term_and_each_run():
    colour = charts.colours({"models": [{"name": "kd <script>"}]}, HISTORIES)
    found = {chart.title: chart.svg for chart in charts.loss_charts(HISTORIES, colour, MEASURE)}
    assert list(found) == ["cross entropy", "forward kl", "weighted total"]
    assert found["cross entropy"].count("<path") == 2
    assert found["cross entropy"].count("<circle") == 39 + 4
    assert found["forward kl"].count("<circle") == 0
    only = charts.loss_charts(
        {"kd": [{"step": 5, "forward_kl": 1.0, "loss": 1.0, "eval_loss": 2.0}]}, {"kd": "c0"}, MEASURE
    )
    assert [chart.title for chart in only] == ["held-out loss", "forward kl", "weighted total"]


def test_an_untouched_student_far_off_is_named_not_drawn():
    def model(name, role, perplexity):
        ends = {"perplexity_low": perplexity * 0.9, "perplexity_high": perplexity * 1.1}
        return {
            "name": name,
            "role": role,
            "perplexity": perplexity,
            "parameters": 9,
            "tokens_per_second": 5,
        } | ends

    models = [model("kd", "distilled", 10.0), model("raw", "untouched", 1500.0)]
    verdict = {"models": models, "measure": MEASURE}
    size, _speed = charts.tradeoff_charts(verdict, {"kd": "c0", "raw": "c1"})
    assert "Off the scale: raw, 1,500." in size.note and ">raw<" not in size.svg and ">kd<" in size.svg
    models[1]["perplexity"] = 25.0
    size, _speed = charts.tradeoff_charts(verdict, {"kd": "c0", "raw": "c1"})
    assert "Off the scale" not in size.note and ">raw<" in size.svg


def test_no_name_lies_on_a_bubble():
    def model(name, role, latency, mse, parameters):
        return {"name": name, "role": role, "latency_ms": latency, "mse": mse, "parameters": parameters}

    models = [
        model("last season (24 steps)", "simple", 0.9, 0.42, 0),
        model("line in closed form", "simple", 0.95, 0.41, 2_000),
        model("forecast distillation", "distilled", 1.0, 0.42, 80_000),
        model("teacher", "teacher", 2.0, 0.40, 100_000),
    ]
    colour = {line["name"]: f"c{number}" for number, line in enumerate(models)}
    (chart,) = series_charts.bubble_charts({"models": models, "measure": MSE.about()}, colour)
    bubbles = [
        tuple(map(float, found))
        for found in re.findall(r'<circle[^>]* cx="(.*?)" cy="(.*?)" r="(.*?)"', chart.svg)
    ]
    names = re.findall(r'<text class="name" x="(.*?)" y="(.*?)"[^>]*>(.*?)</text>', chart.svg)
    assert len(bubbles) == len(names) == 4 and chart.svg.count('class="leader"') == 4
    assert all(float(x) > cx + r for x, _y, _name in names for cx, _cy, r in bubbles)
    assert all(float(x) + 6 * len(name) < svg.WIDTH + 10 for x, _y, name in names)


@pytest.mark.parametrize(
    "teacher, words",
    [
        ((14.29, 13.7, 6.0), "14.3 times fewer parameters, 13.7 times fewer bytes on disk and 6.0 times the speed"),
        ((0.274, 0.02, 0.0385), "3.6 times as many parameters, 50.0 times the bytes on disk and 0.038 times the speed"),
    ],
)  # fmt: skip
def test_small_ratios_are_told_with_two_digits(said, teacher, words):
    ratios = dict(zip(("parameters", "bytes", "speed"), teacher, strict=True))
    found = said | {"compression": ratios, "cost": {"ratio": 1.04}}
    found["models"] = [line | {"retained": None} for line in said["models"]]
    assert f" has {words}. A step of distillation takes the compute of 1.0 steps" in compared(found)


def test_markdown_and_fences_hold_what_they_are_given():
    assert markdown("a|b <i>\n*c*") == "a\\|b &lt;i> \\*c\\*"
    assert fenced("x ``` y").startswith("````text\n") and fenced("x ``` y").endswith("\n````")
