"""The planner's page in a real browser: its plans are Python's; what its address and a report set it to."""

import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from html import unescape

import pytest
from fms.models import get_model
from fms.modules.attention import MultiHeadAttention
from omegaconf import OmegaConf

from ringexp.models.fms import facts
from ringexp.planning import EqualLinks, Link, RankCost
from ringexp.report.build import write_report
from ringexp.web import FOLDER, planner_page
from ringexp.web.measured_run import MeasuredRun
from ringexp.web.shapes import offered_shapes, page_shape
from support.browser import dom
from support.fms_work import attention_flops_per_pair, linear_flops_per_token
from support.planner_settings import Setting, some_setting
from support.run_folders import write_run

CASES = 600
COSTS = (RankCost(0.1, 2.4e-4, 3e-8), RankCost(0.1, 5e-4, 7e-8))
"""Costs of the report's two ranks."""


def results_of(path, scripts, data, call):
    """Run some of the page's scripts on `data` and return the value of the JavaScript expression `call`.

    Use node where it is installed: it starts faster than a browser.
    """
    code = "\n".join((FOLDER / name).read_text() for name in scripts)
    if node := shutil.which("node"):
        script = path.with_suffix(".js")
        script.write_text(f"const DATA = {json.dumps(data)};\n{code}\nconsole.log(JSON.stringify({call}));")
        return json.loads(subprocess.run([node, script], capture_output=True, text=True, check=True).stdout)
    inlined = f"const DATA = {json.dumps(data)};\n{code}\ndocument.body.textContent = JSON.stringify({call});"
    path.write_text(f"<body><script>{inlined}</script>")
    return json.loads(unescape(re.search(r"<body>(.*)</body>", dom(path), re.DOTALL)[1]))


def test_plans_in_the_browser_are_those_of_python(tmp_path):
    rng = random.Random(0)
    settings = [some_setting(rng) for _ in range(CASES)]
    call = """DATA.map((one) => {
      try {
        const plan = planned(one.split, one.layout, one);
        return [plan.tokens, plan.latencyMs];
      } catch { return null; }
    })"""
    given = [setting.for_the_page() for setting in settings]
    plans = results_of(tmp_path / "plans.html", ["planning.js"], given, call)
    left_out = exposed = refused = copied = hops_counted = 0
    for setting, plan in zip(settings, plans, strict=True):
        expected = setting.planned()
        if expected is None:
            assert plan is None, setting
            refused += 1
            continue
        assert plan[0] == expected[0], setting
        assert plan[1] == pytest.approx(expected[1], rel=1e-9), setting
        left_out += 0 in plan[0]
        exposed += replace(setting, hop=EqualLinks(Link(0.0, 0.0))).planned()[1] < expected[1]
        copied += (
            expected != replace(setting, hop=replace(setting.hop, direct=not setting.hop.direct)).planned()
        )
        free = [replace(cost, hop_ms=0.0, hop_token_ms=0.0) for cost in setting.rank_costs]
        hops_counted += replace(setting, rank_costs=free).planned()[0] != expected[0]
    assert min(left_out, exposed, refused, copied, hops_counted) > 2


def test_shapes_are_those_of_the_models(tmp_path):
    offered = offered_shapes()
    data = {"shapes": [page_shape(*named) for named in offered.items()], "runs": []}
    call = "DATA.shapes.map(matmulFlops)"
    found = results_of(tmp_path / "shapes.html", ["planning.js", "state.js"], data, call)
    for (name, shape), flops in zip(offered.items(), found, strict=True):
        model = OmegaConf.load(f"conf/model/{name}.yaml")
        if "architecture" in model:
            overrides = dict(model.get("overrides") or {})
            how = {"device_type": "meta", "distributed_strategy": "none", **overrides}
            whole = get_model(model.architecture, model.variant, **how)
            layers = whole.get_submodule("base_model.layers")
        else:
            sizes = (model.emb_dim, model.head_dim, model.head_dim, model.num_heads, model.num_kv_heads)
            layers = [MultiHeadAttention(*sizes)]
        attention = facts.first_attention(layers[0])
        linear_flops = linear_flops_per_token(layers[0]) if model.get("projections", True) else 0
        assert flops["token"] == pytest.approx(linear_flops, rel=1e-3), shape  # but for a router
        assert flops["pair"] == attention_flops_per_pair(attention), shape
        assert (shape.layers, shape.num_kv_heads) == (len(layers), attention.kvheads), shape


def tokens_of(html):
    """The table's token counts, in rank order."""
    rows = re.findall(r"<tr><td><span[^>]*></span> \d</td><td class=\"n\">([\d,]+)</td>", html)
    return [int(row.replace(",", "")) for row in rows]


def cards_of(html):
    """Name -> value of the figures on top."""
    return dict(re.findall(r'<div class="finding">([^<]*)<b>([^<]*)</b>', html))


def check_shown(html, setting):
    """That the page shows the plan of `setting`, to the digits it shows."""
    tokens, latency_ms = setting.planned()
    assert tokens_of(html) == tokens
    assert float(cards_of(html)["Predicted latency"].removesuffix(" ms")) == pytest.approx(
        latency_ms, rel=5e-3
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("planner") / "planner.html"
    path.write_text(planner_page())
    return path


@pytest.mark.parametrize(
    ("choices", "layout", "causal", "direct"),
    [("layout=contiguous", "contiguous", True, False), ("mask=full&hops=copy", "zigzag", False, True)],
)
def test_an_address_is_a_view(page, choices, layout, causal, direct):
    settings = f"speeds=100,40,60&seqLen=8192&{choices}&split=lut"
    costs = "tflops=500&fixedMs=0.3&gbps=5&hopMs=0.2&tile=64&shape=1,1,4096,32,32,128,0,2"
    token_flops, pair_flops, speeds = 2 * 4 * 4096 * 4096, 4 * 32 * 128, (500, 200, 300)
    rank_costs = [RankCost(0.3, token_flops / (s * 1e9), pair_flops / (s * 1e9)) for s in speeds]
    hop = EqualLinks(Link(0.2, 2 * 32 * 128 * 2 / 5e6), direct=direct)
    setting = Setting("lut", layout, 8192, 64, speeds, rank_costs, hop, causal)
    check_shown(dom(page, f"#{settings}&{costs}"), setting)
    other_way = replace(setting, hop=replace(hop, direct=not direct)).planned()
    assert other_way[1] != pytest.approx(setting.planned()[1], rel=2e-2)


def test_a_control_that_is_moved_changes_plan_and_address(page):
    move = """<script>
      const slider = document.getElementById("speed-3");
      slider.value = 75;
      slider.dispatchEvent(new Event("input"));
      document.querySelector("input[value=even]").click();
      setTimeout(() => { document.title = location.hash; }, 1000);
    </script></body>"""
    moved = page.with_name("moved.html")
    moved.write_text(page.read_text().replace("</body>", move))
    html = dom(moved)
    assert tokens_of(html) == [8192] * 4
    address = unescape(re.search(r"<title>(.*?)</title>", html)[1])
    assert "speeds=100,100,50,75&" in address
    assert tokens_of(dom(page, address)) == [8192] * 4


def test_an_address_that_says_nonsense_is_the_default_view(page):
    html = dom(page, "#speeds=0,7000&seqLen=-3&layout=constructor&split=&shape=1,2&run=gone&gbps=%%%")
    assert (len(tokens_of(html)), sum(tokens_of(html))) == (4, 32768)


def test_too_few_tokens_are_said(page):
    html = dom(page, "#speeds=100,100,100&seqLen=1024&tile=512&split=even")
    assert "There is no such plan: 1024 tokens are fewer than one tile of 512 for each of 3 ranks." in html


def test_the_page_needs_no_network(page):
    text = page.read_text().replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|@import|url\((?!#)|src=", text)
    assert "prefers-color-scheme: dark" in text


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report of three runs, with hops and what their ranks cost."""
    root = tmp_path_factory.mktemp("outputs")
    folder = root / "sweeps" / "2026-03-01" / "12-00-00-abc"
    ways = (("zigzag", "balanced"), ("contiguous", "lut"), ("zigzag", "even"))
    for number, (layout, partitioner) in enumerate(ways):
        figures = {"speeds": [600.0, 240.0], "hop_latency_ms": 0.02, "hop_gbps": 340.0, "transport": "ipc"}
        figures["costs"] = [asdict(cost) for cost in COSTS]
        write_run(folder, number, layout=layout, partitioner=partitioner, latency_ms=2.0 + number, **figures)
    return write_report([folder], folder / "report").page.parent


def test_a_report_has_the_planner_set_to_its_runs(report):
    html = dom(report / "planner.html")
    assert "Costs are those measured for run 100/50 %, 4096 tokens" in html
    assert cards_of(html)["Measured in this run"] == "2 ms"
    hop = EqualLinks(Link(0.02, 2 * 32 * 128 * 2 / 340e6), direct=True)
    check_shown(html, Setting("balanced", "zigzag", 4096, 128, (600, 240), COSTS, hop))


@pytest.mark.parametrize(
    ("way", "measured"),
    [
        ("layout=contiguous&split=lut", "3 ms"),
        ("layout=contiguous&split=even", None),
        ("hops=forward", None),  # these runs copied
        ("mask=full", None),
    ],
)
def test_what_is_asked_has_a_measurement_of_its_own(report, way, measured):
    html = dom(report / "planner.html", f"#run=100/50+%25,+4096+tokens&{way}")
    assert cards_of(html).get("Measured in this run") == measured


def test_the_command_writes_the_planner_without_runs(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "ringexp", "report", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = run("--planner", tmp_path / "planner.html")
    assert (done.returncode, done.stdout) == (0, f"Planner: {tmp_path}/planner.html\n")
    assert (tmp_path / "planner.html").read_text() == planner_page()
    done = run("--planner", tmp_path / "nowhere" / "planner.html")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be written: No such file or directory" in done.stderr
    assert run(tmp_path, "--planner", tmp_path / "planner.html").returncode == 2
    assert run().returncode == 2


def test_no_name_of_a_run_ends_the_script():
    name = "</script><script>alert(1)</script> & \u2028"
    page = planner_page([MeasuredRun(name, {}, None, {})])
    data = re.search(r"const DATA = (.*);</script>", page)[1]
    assert json.loads(data)["runs"][0]["name"] == name
    assert not set("<>&\u2028") & set(data)
    assert page.count("<script") == planner_page().count("<script")
