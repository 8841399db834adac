"""References are found by all that decides them, and believed only if they can be true."""

import json
from dataclasses import asdict, replace

import pytest

from ringexp.config import (
    AttentionModelConfig,
    Config,
    DriftConfig,
    FmsModelConfig,
    HeteroConfig,
    KernelConfig,
)
from ringexp.tracking import references
from ringexp.tracking.references import (
    ReferenceRun,
    ReferenceStore,
    even_facts,
    homogeneous_facts,
    single_facts,
)
from ringexp.tracking.results import References

CONFIG = Config(model=AttentionModelConfig(name="tiny"), hetero=HeteroConfig([50.0, 100.0]))
GPUS = {"device": "cuda", "host": "a", "torch": "2.11", "triton": "3.5", "ibm-fms": "1.13.1", "driver": "580"}
GPUS |= {"gpus": ["H200", "H200"], "gpu_uuids": ["GPU-1", "GPU-2"], "gpu_order": "FASTEST_FIRST"}
FACTS = {"single": {"a": 1}, "homogeneous": {"b": 2}, "even": {"c": 3}}
SINGLE = {"latency_ms_median": 20.0, "latency_ms_back_to_back": 19.0, "speed_tflops": 3.0}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, told) -> ReferenceStore:
    return ReferenceStore(tmp_path / "references", told.append)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": KernelConfig("sdpa")},
        {"model": AttentionModelConfig(name="tiny", dtype="bfloat16")},
        {"model": AttentionModelConfig(name="tiny", batch_size=2)},
        {"split": "kv"},
        {"hetero": HeteroConfig([50.0, 100.0], "cpu_quota")},
        {"hetero": HeteroConfig([25.0, 100.0])},
        {"seq_len": 8192},
        {"prompt_lengths": [4096, 100]},
        {"decode_tokens": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_even_reference_is_in_its_key(store, change):
    machine = {"device": "cpu", "cores": 2}
    paths = {
        store.path("even", even_facts(config, machine, {})) for config in (CONFIG, replace(CONFIG, **change))
    }
    assert len(paths) == 2


@pytest.mark.parametrize("facts", [single_facts, homogeneous_facts, even_facts])
@pytest.mark.parametrize(
    "change",
    [
        {"host": "b"},
        {"torch": "2.12"},
        {"triton": "3.6"},
        {"ibm-fms": "1.13.2"},
        {"driver": "590"},
        {"gpus": ["H200"], "gpu_uuids": ["GPU-1"]},
        {"gpu_uuids": ["GPU-2", "GPU-1"]},
        {"gpu_order": "PCI_BUS_ID"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_machine_or_software_has_references_of_its_own(store, facts, change):
    assert store.path("any", facts(CONFIG, GPUS, {})) != store.path("any", facts(CONFIG, GPUS | change, {}))


@pytest.mark.parametrize("facts", [single_facts, homogeneous_facts, even_facts])
def test_other_code_or_content_has_references_of_its_own(store, monkeypatch, facts):
    before = store.path("any", facts(CONFIG, GPUS, {}))
    assert store.path("any", facts(CONFIG, GPUS, {"prompt": "a"})) != before
    monkeypatch.setattr(references, "code_identity", lambda: "changed")
    assert store.path("any", facts(CONFIG, GPUS, {})) != before


def test_ranks_that_share_a_device_have_references_of_their_own():
    one, two = (
        homogeneous_facts(CONFIG, GPUS | {"gpus": names}, {})["ranks_per_device"]
        for names in (["H200", "H200"], ["H200"])
    )
    assert (one, two) == (1, 2)


def test_how_many_ranks_there_are_counts_where_they_share_a_cpu():
    three = replace(CONFIG, hetero=HeteroConfig([50.0, 100.0, 100.0]))
    cpu = {"device": "cpu", "cores": 4}
    assert single_facts(CONFIG, GPUS, {}) == single_facts(three, GPUS, {})
    assert single_facts(CONFIG, cpu, {}) != single_facts(three, cpu, {})


@pytest.mark.parametrize(
    ("machine", "counts"),
    [(GPUS | {"gpus": ["H200"]}, True), (GPUS, False), ({"device": "cpu", "cores": 4}, False)],
    ids=["one GPU for two ranks", "a GPU per rank", "CPU"],
)
def test_a_throttle_counts_at_full_speed_where_ranks_share_a_gpu(machine, counts):
    one, other = (
        homogeneous_facts(replace(CONFIG, hetero=HeteroConfig([50.0, 100.0], throttle)), machine, {})
        for throttle in ("mps", "none")
    )
    assert (one != other) is counts


def test_only_where_speeds_drift_do_the_prompts_count():
    def even(drift, repeats):
        hetero = HeteroConfig([50.0, 100.0], drift=drift)
        return even_facts(replace(CONFIG, hetero=hetero, repeats=repeats), GPUS, {})

    assert even(None, 5) == even(None, 9)
    drift = DriftConfig("step")
    assert even(drift, 5) != even(drift, 9)
    assert even(drift, 5) != even(None, 5)


def test_the_folder_of_a_checkpoint_does_not_count():
    models = [FmsModelConfig("checkpoint", checkpoint=folder) for folder in ("/a", "/b")]
    one, other = (single_facts(replace(CONFIG, model=model), GPUS, {"checkpoint": "x"}) for model in models)
    assert one == other


def test_a_later_measurement_replaces_an_earlier_one(store):
    store.put("even", FACTS["even"], {"latency_ms_median": 166.17, "spread": 0.1})
    store.put("even", FACTS["even"], {"latency_ms_median": 114.88, "spread": 0.0})
    assert store.get("even", FACTS["even"]) == ReferenceRun(114.88)


def test_only_what_this_call_measured_is_collected_for_a_sweep(store):
    store.put("single", FACTS["single"], SINGLE, "before")
    store.put("even", FACTS["even"], {"latency_ms_median": 2.0, "spread": 0.0}, "now")
    assert store.collect(FACTS, "now") == References(even_ms=2.0)
    assert store.missing(FACTS, "now") == ["single", "homogeneous"]
    assert store.collect(FACTS).single_ms == 20.0
    assert store.missing(FACTS) == ["homogeneous"]


def test_a_prompt_that_does_not_fit_one_device_is_known_to(store):
    measured = dict.fromkeys(SINGLE) | {"speed_tflops": 3.0}
    store.put("single", FACTS["single"], measured)
    assert store.missing({"single": FACTS["single"]}) == []
    assert store.collect(FACTS) == References(single_speed_tflops=3.0)


RING = {"latency_ms_median": 3.0, "spread": 0.0}
DAMAGED = {
    "zero": ("even", {"latency_ms_median": 0}),
    "a text": ("even", {"latency_ms_median": "3"}),
    "negative": ("homogeneous", {"latency_ms_median": -1.0}),
    "null": ("homogeneous", {"latency_ms_median": None}),
    "a list": ("even", {"latency_ms_median": [3.0]}),
    "spread": ("even", {"latency_ms_median": 3.0, "spread": "wide"}),
    "no speed": ("single", SINGLE | {"speed_tflops": None}),
    "zero speed": ("single", SINGLE | {"speed_tflops": 0.0}),
    "no latency": ("single", {"speed_tflops": 1.0}),
    "in a row": ("single", SINGLE | {"latency_ms_back_to_back": 0}),
    "decoding": ("single", SINGLE | {"decode_ms_per_token": "none"}),
    "kernel": ("kernel", {"kernel": "sdpa", "times_ms": {"sdpa": 0.0}}),
    "no kernel": ("kernel", {"kernel": "sdpa", "times_ms": {}}),
    "kernel list": ("kernel", {"kernel": "sdpa", "times_ms": [1.0]}),
}


@pytest.mark.parametrize(("kind", "measured"), DAMAGED.values(), ids=DAMAGED)
def test_figures_that_cannot_be_are_set_aside(store, told, kind, measured):
    facts = {"any": 1}
    store.put(kind, facts, measured)
    assert store.get(kind, facts) is None
    assert len(told) == 1
    assert not store.path(kind, facts).exists()
    assert store.path(kind, facts).with_suffix(".json.damaged").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"facts": {"a": 1}}', b"\xff", b'{"measured": 3}'], ids=str
)
def test_damaged_files_are_set_aside(store, told, content):
    store.put("single", FACTS["single"], SINGLE)
    store.path("single", FACTS["single"]).write_bytes(content)
    assert store.collect(FACTS) == References()
    assert len(told) == 1


def test_an_entry_about_something_else_is_not_believed(store, told):
    store.put("even", FACTS["homogeneous"], RING)
    store.path("even", FACTS["homogeneous"]).rename(store.path("even", FACTS["even"]))
    assert store.get("even", FACTS["even"]) is None
    assert "something else" in told[0]


def test_only_the_reference_runs_of_one_machine_are_forgotten(store):
    here, there = ({"machine": {"host": host}} for host in "ab")
    for facts in (here, there):
        store.put("even", facts, RING)
        store.put("single", facts, SINGLE)
        store.put("kernel", facts, {"kernel": "sdpa", "times_ms": {"sdpa": 1.0}})
    assert store.forget(here["machine"]) == 2
    assert store.get("even", here) is None
    assert store.get_kernel(here)
    assert store.get("even", there)


def test_facts_survive_the_file(store):
    facts = even_facts(CONFIG, GPUS, {"prompt": "a"})
    store.put("even", facts, RING)
    assert store.get("even", json.loads(json.dumps(facts))) == ReferenceRun(**RING)
    assert facts["model"].items() <= asdict(CONFIG.model).items()


def test_a_store_that_cannot_be_written_is_only_a_warning(tmp_path, store, told):
    (tmp_path / "references").touch()
    store.put("even", FACTS["even"], RING)
    (line,) = told
    assert "the even reference is not kept" in line
    assert store.get("even", FACTS["even"]) is None
