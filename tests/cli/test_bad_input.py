"""Bad input: one clear line, an exit code, and nothing left behind."""

import os
import re
import socket
from pathlib import Path

import pytest

from support.command import QUICK, ranks_alive, ringexp, run_dirs

BAD = [
    (["seqlen=5"], "no setting seqlen; did you mean seq_len?"),
    (["model.dtyp=float32"], "no setting model.dtyp; did you mean model.dtype?"),
    (["+foo=1"], "no setting foo"),
    (
        ["partitioner=balanced", "split=kv"],
        "partitioner=balanced balances what ranks compute, which split=kv",
    ),
    (
        ["partitioner=lutt"],
        "partitioner=lutt is unknown; choose one of adaptive, balanced, even, formula, lut, uneven",
    ),
    (["seq_len=abc"], "seq_len: Value 'abc'"),
    (["seq_len=100000000000000000000000"], "must be at least 1 and at most 2147483647"),
    (["hetero=50_100"], "use hetero=mps_50_100 or hetero.percentages=[50,100]"),
    (["hetero=mps_33_66"], "for these percentages use hetero.percentages=[33,66]"),
    (["device=gpu"], "device=gpu is unknown; choose one of auto, cpu, cuda; did you mean cuda?"),
    (["hydra/launcher=slurm"], "hydra/launcher=slurm is for sweeps, also of one run: add -m"),
    (["-m", "hydra/launcher=submitit_slurm"], "hydra/launcher=submitit_slurm cannot start ranks"),
    (["-m", "hydra/launcher=submitit_local"], "hydra/launcher=submitit_local cannot start ranks"),
    (["--resolve"], "the settings cannot be composed: The --resolve flag can only be used"),
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["seq_len=20"], "seq_len=20 is smaller than one tile of 16 tokens"),
    (["hetero.percentages=[0,50]"], "hetero.percentages=[0.0, 50.0]: the entry of rank 0"),
    (["hetero.percentages=[100,101]"], "the entry of rank 1 is 101.0"),
    (["hetero=mps_50_100", "hetero.throttle=mps"], "hetero.throttle=mps works on cuda only"),
    (["hetero=measured", "partitioner=uneven"], "hetero=measured has none; use even, lut"),
    (["hetero=measured", "hetero.percentages=[100,50]"], "hetero.throttle=measured slows nothing"),
    (["memory_limit_gib=[1]"], "memory_limit_gib=[1]: give one number above 0"),
    (["partitioner=adaptive", "split=kv"], "partitioner=adaptive balances what ranks compute"),
    (["partitioner=adaptive", "partitioner.adaptive.horizon=0"], "adaptive.horizon=0 must be at least 1"),
    (["hetero=drift_step", "repeats=20", "hetero.throttle=mps"], "hetero.throttle=mps cannot drift"),
    (
        ["hetero=drift_step", "hetero.drift.to=[50]"],
        "hetero.drift.to=[50.0] must have one percentage per rank",
    ),
    (["hetero=drift_step"], "hetero.drift.at=10 comes after all repeats=10 prompts"),
    (["kernel=cudnn"], "kernel=cudnn needs CUDA, but device=cpu"),
    (["transport=nccl"], "transport=nccl needs CUDA, but device=cpu"),
    (["device=cuda"], "device=cuda, but no CUDA device is visible"),
    (["decode_tokens=8"], "decode_tokens is for whole models"),
    (["prompt_lengths=[9,5]"], "prompt_lengths is for whole models; model=attention_tiny is one layer"),
    (["model=llama_micro", "decode_tokens=2"], "decode_tokens=2 must be at least 3"),
    (["model=llama_micro", "split=kv"], "model=llama_micro needs split=tokens"),
    (["model.num_kv_heads=3"], "model.num_kv_heads=3 must divide model.num_heads=4"),
    (["repeats=0"], "repeats=0 must be at least 1"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_settings_are_one_line(tmp_path, overrides, message):
    done = ringexp("model=attention_tiny", "device=cpu", *overrides, root=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("ringexp: error: ")
    assert message in line


def test_a_kernel_that_cannot_run_is_refused_before_ranks_start(tmp_path):
    done = ringexp("kernel=triton", "references=false", *QUICK, root=tmp_path, env={"TRITON_INTERPRET": "0"})
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "kernel=triton needs CUDA, but device=cpu" in line
    assert not list(tmp_path.glob("runs/*/*/ranks"))


def test_a_rank_that_raises_is_named_with_its_reason_and_log(tmp_path):
    """Python imports sitecustomize as it starts: here it breaks the work of rank 1."""
    (tmp_path / "sitecustomize.py").write_text(BREAKS_RANK_1, encoding="utf-8")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = ringexp("references=false", *QUICK, root=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert re.search(r"rank 1 failed: RuntimeError: no more; traceback in .*stderr.log", line)
    assert ranks_alive(tmp_path) == []


BREAKS_RANK_1 = """
import os

if os.environ.get("RANK") == "1":
    from ringexp.worker import job

    def run_job(*_):
        raise RuntimeError("no more")

    job.run_job = run_job
"""


def test_a_model_setting_that_fms_would_ignore_is_refused(tmp_path):
    done = ringexp("model=llama_micro", "+model.overrides.nlayer=1", *QUICK, root=tmp_path)
    assert done.returncode == 2
    assert "model.overrides.nlayer is no setting of FMS's model" in done.stderr


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = ringexp(f"launch.port={port}", *QUICK, root=tmp_path)
    assert done.returncode == 2
    assert f"launch.port={port} cannot be used" in done.stderr.strip().splitlines()[-1]


def test_more_ranks_than_gpus_is_named(tmp_path, monkeypatch):
    from ringexp.app import site
    from ringexp.app.single_run import run
    from ringexp.config import AttentionModelConfig, Config, HeteroConfig, TransportConfig
    from ringexp.errors import UserError

    monkeypatch.setattr(site, "gpu_count", lambda: 2)
    config = Config(
        model=AttentionModelConfig(),
        hetero=HeteroConfig([100.0, 50.0, 50.0]),
        transport=TransportConfig("nccl"),
        device="cuda",
        output_root=str(tmp_path),
    )
    with pytest.raises(UserError, match="asks for 3 ranks, but transport=nccl takes one rank per GPU"):
        run(config, tmp_path)


def test_dry_run_plans_and_starts_nothing(tmp_path):
    done = ringexp("dry_run=true", "hetero=mps_50_100", "device=cuda", "seq_len=65536", root=tmp_path)
    assert done.returncode == 0
    assert "dry_run=true: nothing was started" in done.stdout
    assert "21760" in done.stdout  # 65536 / 3, to a tile of 256
    assert list(tmp_path.iterdir()) == []


def test_a_dry_sweep_takes_its_option_last_and_writes_nothing(tmp_path):
    done = ringexp(
        "dry_run=true",
        "device=cpu",
        "model=attention_tiny",
        "seq_len=1k,2k",
        "-m",
        root="outputs",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing was started") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "inside a file", "dangling link", "loop", "no folder can be there"])
@pytest.mark.parametrize("option", [(), ("-m",)], ids=["run", "sweep"])
def test_an_output_root_that_cannot_be_is_one_line(tmp_path, kind, option):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    root = {
        "file": tmp_path / "file",
        "inside a file": tmp_path / "file" / "x",
        "dangling link": tmp_path / "dangling",
        "loop": tmp_path / "loop",
        "no folder can be there": Path("/proc/x"),
    }[kind]
    done = ringexp("model=attention_tiny", "device=cpu", *option, root=root)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"ringexp: error: output_root={root} ")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_many_ranks_get_a_folder(tmp_path):
    """The ranks themselves would take too long: the port they are to meet at is taken."""
    profile = ",".join(str(100 - rank) for rank in range(52))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"launch.port={taken.getsockname()[1]}"
        done = ringexp(f"hetero.percentages=[{profile}]", port, *QUICK, root=tmp_path)
    assert f"{port} cannot be used" in done.stderr
    (run_dir,) = run_dirs(tmp_path)
    assert "52_ranks_" in run_dir.name


@pytest.mark.parametrize("option", ["--help", "--info", "--hydra-help", "--version", "--cfg=job"])
def test_options_of_hydra_end_well(tmp_path, option):
    done = ringexp(option, root=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_errors_do_not_act_on_the_terminal(tmp_path):
    """Messages quote files, whose control characters are replaced."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["\\u001b[31mRed"]}', encoding="utf-8")
    done = ringexp("model=checkpoint", f"model.checkpoint={folder}", "dry_run=true", root=tmp_path)
    assert done.returncode == 2
    assert "[31mRed" in done.stderr
    assert "\x1b" not in done.stderr
