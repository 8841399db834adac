"""Stores that earlier runs left, from the command line: damaged, of something else, or too old to be true."""

import json

from support.checkpoints import CHECKPOINTS, save_checkpoint
from support.command import QUICK, ringexp, run_dirs

SMALL = ("model=attention_tiny", "hetero=mps_50_100", "seq_len=128", "tracker=disabled", *QUICK)


def test_damaged_stores_are_set_aside_and_all_is_measured_anew(tmp_path):
    sweep = ("-m", *SMALL, "partitioner=even,uneven", "report=false")
    first = ringexp(*sweep, root=tmp_path)
    assert "2 of 2 runs complete; everything" in first.stdout, first.stderr
    entries = [*(tmp_path / "completed").iterdir(), *(tmp_path / "references").iterdir()]
    assert len(entries) == 2 + 4  # the full-speed ring is an even reference, too
    damage = [b"", b"[]", b"{", b"\xff", b'{"facts": 1, "measured": 2}', b"null"]
    for entry, content in zip(entries, damage, strict=True):
        entry.write_bytes(content)
    speeds = tmp_path / "calibration" / "speeds.csv"
    speeds.write_bytes(speeds.read_bytes()[:-30])
    again = ringexp(*sweep, root=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert "2 of 2 runs complete; everything" in again.stdout
    told = "".join((again.stdout + again.stderr).split())
    for entry in entries[:2]:
        assert entry.with_name(f"{entry.name}.damaged").exists()
        assert told.count(f"{entry.name}isdamaged") == 1
    third = ringexp(*sweep, root=tmp_path)
    assert "2 of 2 runs complete (2 taken from earlier ones)" in third.stdout
    assert " is damaged" not in third.stdout + third.stderr


def test_a_reference_too_good_to_be_true_is_measured_anew(tmp_path):
    """The first run's reference says that the even ring took a thousandth of what it takes."""
    run = (*SMALL, "partitioner=uneven", "calibration.spot_check=true", "calibration.tolerance=20")
    assert ringexp(*run, root=tmp_path).returncode == 0
    stored = list((tmp_path / "references").glob("even-*.json"))
    for path in stored:
        entry = json.loads(path.read_text())
        entry["measured"] = {"latency_ms_median": entry["measured"]["latency_ms_median"] / 1000, "spread": 0}
        path.write_text(json.dumps(entry))
    again = ringexp(*run, root=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "the stored even reference is off" in " ".join(again.stdout.split())
    second = json.loads((run_dirs(tmp_path)[-1] / "results.json").read_text())
    assert second["missing_references"] == []
    assert second["speedup_over_even"] > 0.02
    assert (second["split"], second["partitioner"], second["seq_len"]) == ("tokens", "uneven", 128)


def test_runs_of_a_sweep_without_folders_of_their_own_are_refused(tmp_path):
    sweep = ("-m", *SMALL, "partitioner=even,uneven", "hydra.sweep.subdir=here")
    done = ringexp(*sweep, root=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "2 runs of the sweep have the same folder" in line
    assert "hydra.sweep.subdir" in line
    assert not list(tmp_path.rglob("rank_set.json"))


def test_the_label_of_a_text_run_has_its_real_length(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", *CHECKPOINTS["llama"])
    (tmp_path / "prompt.txt").write_text("the quick brown fox jumps over the lazy dog, and so on.")
    done = ringexp(
        "model=checkpoint",
        f"model.checkpoint={tmp_path / 'checkpoint'}",
        f"prompt_file={tmp_path / 'prompt.txt'}",
        "partitioner=even",
        "--cfg=job",
        "--package=label",
        "--resolve",
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("_even_zigzag_55")
