"""Batches of unequal prompts from the command line: each prompt is computed as if it were alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ringexp.config import Config, FmsModelConfig
from ringexp.configure.prompts import prompts, starts_of, with_prompt
from ringexp.errors import UserError
from ringexp.models.checkpoints.folder import load_tokenizer
from support.checkpoints import CHECKPOINTS, greedy, save_checkpoint
from support.command import QUICK, ringexp, run_dirs

SETTINGS = ("model.dtype=float32", "tracker=disabled", "references=false", *QUICK)


def results_of(root: Path) -> dict:
    (run_dir,) = run_dirs(root)
    return json.loads((run_dir / "results.json").read_text())


@pytest.mark.parametrize(
    "how",
    [
        ("hetero=mps_100_50",),
        ("hetero=mps_100_50", "model.chunk_tokens=60", "layout=contiguous"),
        ("hetero.percentages=[100,50,50]", "model=mixtral_micro", "partitioner=even"),
    ],
    ids=" ".join,
)
def test_unequal_prompts_are_computed_as_each_alone(tmp_path, how):
    """In chunks of 60 the shortest prompt begins in the last chunk."""
    done = ringexp(
        "model=llama_micro", "prompt_lengths=[240,170,41]", "decode_tokens=5", *how, *SETTINGS, root=tmp_path
    )
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    assert sum(results["tokens"]) == 240
    assert results["exact"] is True
    assert results["error_max_abs"] < 1e-5
    assert (results["decode"]["sequences"], results["decode"]["agreeing"]) == (3, 3 * 5)
    assert "15 as one process would choose" in done.stdout


def test_every_line_of_a_text_is_continued(tmp_path):
    folder = tmp_path / "checkpoint"
    lines = [
        "the quick brown fox jumps over the lazy dog, and so on.",
        "who is there",
        "a b c d e f g h i j.",
    ]
    reference, tokenizer = save_checkpoint(folder, *CHECKPOINTS["llama"]), load_tokenizer(folder)
    (tmp_path / "prompts.txt").write_text("\n\n".join(lines) + "\n")
    done = ringexp(
        "model=checkpoint",
        f"model.checkpoint={folder}",
        f"prompt_file={tmp_path / 'prompts.txt'}",
        "prompt_lines=true",
        "decode_tokens=6",
        "hetero=mps_100_50",
        *SETTINGS,
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    assert (results["exact"], results["decode"]["agreeing"]) == (True, 3 * 6)
    for number, line in enumerate(lines):
        ids = torch.tensor([tokenizer(line)["input_ids"]])
        continuation = tokenizer.decode(greedy(reference, ids, 6)[0, ids.shape[1] :])
        assert results["decode"]["texts"][number] == continuation
        assert f"Continuation of prompt {number}\n{continuation}\n" in done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, *CHECKPOINTS["llama"])
    return folder


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("ab\ncd\n", ["ab", "cd"]),
        ("ab\r\ncd", ["ab", "cd"]),
        ("\ufeffab\ncd", ["ab", "cd"]),
        ("ab\n\n  \ncd", ["ab", "cd"]),
        *((f"ab{other}cd\nef", [f"ab{other}cd", "ef"]) for other in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"),
    ],
    ids=repr,
)
def test_a_text_has_lines_at_newlines_alone(folder, tmp_path, content, lines):
    (tmp_path / "prompt.txt").write_bytes(content.encode())
    config = Config(model=FmsModelConfig(name="any", checkpoint=str(folder)), prompt_lines=True)
    tokenizer = load_tokenizer(folder)
    for settings in ({"prompt_file": str(tmp_path / "prompt.txt")}, {"prompt_text": content}):
        expected = [list(tokenizer(line)["input_ids"]) for line in lines]
        assert prompts(replace(config, **settings)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "is not UTF-8 text: byte 3 is 0xe9"),
        (b"\xff\xfea\0b\0", "is not UTF-8 text: byte 0 is 0xff"),
        (b"a\0b", "has NUL bytes"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (None, "is no file"),
    ],
    ids=repr,
)
def test_a_file_that_is_no_text_is_refused(folder, tmp_path, content, message):
    path = tmp_path / "prompt.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    config = Config(model=FmsModelConfig(name="any", checkpoint=str(folder)), prompt_file=str(path))
    with pytest.raises(UserError, match=f"prompt_file={path} {message}"):
        prompts(config)


def test_a_prompt_is_utf_8_whatever_the_locale(folder, tmp_path):
    (tmp_path / "prompt.txt").write_bytes("größe, 字 and 😀".encode())
    plain, ascii_locale = (
        subprocess.run(
            [sys.executable, "-c", READ, str(folder), str(tmp_path / "prompt.txt")],
            env=os.environ | env,
            capture_output=True,
            check=True,
        ).stdout
        for env in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    )
    assert plain == ascii_locale
    assert len(plain.split(b",")) > 1


READ = """
import sys
from ringexp.config import Config, FmsModelConfig
from ringexp.configure.prompts import prompts

print(prompts(Config(model=FmsModelConfig(checkpoint=sys.argv[1]), prompt_file=sys.argv[2])))
"""


def test_prompts_decide_length_and_batch():
    config = with_prompt(Config(model=FmsModelConfig(name="any"), prompt_lengths=[30, 100, 70]))
    assert (config.seq_len, config.model.batch_size, starts_of(config)) == (100, 3, (70, 0, 30))
    equal = with_prompt(Config(model=FmsModelConfig(name="any"), prompt_lengths=[50, 50]))
    assert (equal.seq_len, equal.model.batch_size, equal.prompt_lengths) == (50, 2, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_lengths": []}, r"prompt_lengths=\[\] must give every prompt at least 1 token"),
        ({"prompt_lengths": [5, 0]}, r"prompt_lengths=\[5, 0\] must give"),
        ({"prompt_lengths": [5, 9], "seq_len": 20}, "seq_len=20, but the longest prompt has 9 tokens"),
        ({"prompt_lengths": [5], "prompt_text": "a"}, "prompt_lengths is for random prompts"),
        ({"prompt_lines": True}, "prompt_lines=true needs prompt_file or prompt_text"),
        ({"prompt_lengths": [5, 9], "model": FmsModelConfig(batch_size=3)}, "the number of prompts is 2"),
    ],
    ids=str,
)
def test_prompts_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        with_prompt(Config(**{"model": FmsModelConfig(name="any"), **settings}))
