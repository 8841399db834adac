"""The displayed continuation ends where the checkpoint says that a text ends."""

import json

import pytest

from ringexp.config import FmsModelConfig
from ringexp.worker.decode import Decoded, continuations
from support.checkpoints import CHECKPOINTS, LETTERS, save_checkpoint

TEXTS = ["so it ends. and more", "no end here"]


@pytest.mark.parametrize(
    ("generation", "settings", "shown"),
    [
        ({"eos_token_id": [LETTERS.index("."), LETTERS.index("d")]}, {}, ["so it en", "no en"]),
        ({"eos_token_id": LETTERS.index(".")}, {"eos_token_id": 0}, ["so it ends", TEXTS[1]]),
        (None, {"eos_token_id": [LETTERS.index(".")]}, ["so it ends", TEXTS[1]]),
        ({}, {}, TEXTS),
        ([], {}, TEXTS),
    ],
)
def test_a_text_ends_at_any_of_the_checkpoints_end_tokens(tmp_path, generation, settings, shown):
    save_checkpoint(tmp_path, *CHECKPOINTS["llama"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    tokens = [[LETTERS.index(letter) for letter in text] for text in TEXTS]
    decoded = Decoded(tokens, ms_per_token=1.0, kept=0, cache_bytes=0)
    model = FmsModelConfig(checkpoint=str(tmp_path))
    assert continuations(model, [None, decoded]) == shown
