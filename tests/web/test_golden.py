"""planning.js makes the plans that the Python planner makes, shown by committed vectors under node."""

import json
import shutil
import subprocess

import pytest

from ringexp.web import FOLDER
from support.planner_settings import GOLDEN, golden_vectors

SCRIPT = """
const { planned } = require(process.argv[1]);
const vectors = JSON.parse(require("fs").readFileSync(process.argv[2], "utf8"));
const plans = vectors.map(({ setting }) => {
  try {
    const plan = planned(setting.split, setting.layout, setting);
    return { tokens: plan.tokens, latency_ms: plan.latencyMs };
  } catch { return null; }
});
console.log(JSON.stringify(plans));
"""


@pytest.fixture(scope="module")
def vectors():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def check_plans(plans, vectors):
    for plan, vector in zip(plans, vectors, strict=True):
        expected = vector["plan"]
        if expected is None:
            assert plan is None, vector
            continue
        assert plan["tokens"] == expected["tokens"], vector
        assert plan["latency_ms"] == pytest.approx(expected["latency_ms"], rel=1e-9), vector


def test_vectors_are_what_python_plans_now(vectors):
    current = json.loads(json.dumps(golden_vectors()))
    assert [vector["setting"] for vector in current] == [vector["setting"] for vector in vectors]
    check_plans([vector["plan"] for vector in current], vectors)


def test_vectors_have_plans_and_a_refusal(vectors):
    plans = [vector["plan"] for vector in vectors]
    assert None in plans
    assert sum(plan is not None and 0 in plan["tokens"] for plan in plans) > 2


def test_planning_js_makes_these_plans_under_node(vectors):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node (apt-get install nodejs)")
    command = [node, "-e", SCRIPT, FOLDER / "planning.js", GOLDEN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    check_plans(json.loads(done.stdout), vectors)
