"""The command line before Hydra reads it."""

import pytest

from ringexp.choices import did_you_mean
from ringexp.cli.arguments import prepared
from ringexp.cli.token_counts import token_count
from ringexp.errors import UserError


@pytest.mark.parametrize(
    ("given", "for_hydra"),
    [
        (["layout=zigzag", "-m", "seq_len=1,2"], ["layout=zigzag", "seq_len=1,2", "-m"]),
        (["--cfg", "job", "seq_len=5"], ["seq_len=5", "--cfg", "job"]),
        (["--info", "seq_len=5"], ["seq_len=5", "--info"]),
        (["--info", "plugins", "seq_len=5"], ["seq_len=5", "--info", "plugins"]),
        (["--config-dir=x", "seq_len=5"], ["seq_len=5", "--config-dir=x"]),
    ],
    ids=str,
)
def test_options_may_come_anywhere(given, for_hydra):
    assert prepared(given) == for_hydra


@pytest.mark.parametrize(
    ("given", "for_hydra"),
    [
        ("seq_len=4k", "seq_len=4096"),
        ("seq_len=4k,64K,1M", "seq_len=4096,65536,1048576"),
        ("prompt_lengths=[1.5k,100]", "prompt_lengths=[1536,100]"),
        ("model.chunk_tokens=2k", "model.chunk_tokens=2048"),
        ("decode_tokens=1k", "decode_tokens=1024"),
        ("tile=1k", "tile=1024"),
        ("label=4k", "label=4k"),
        ("prompt_text=4k", "prompt_text=4k"),
    ],
)
def test_token_counts_may_have_units(given, for_hydra):
    assert prepared([given]) == [for_hydra]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hetero=50_100", "use hetero=mps_50_100 or hetero.percentages=[50,100]"),
        ("hetero=33_66", "use hetero.percentages=[33,66]"),
        ("hetero=33.5_66", "use hetero.percentages=[33.5,66]"),
        ("hetero=none,33_66", "hetero=33_66 is not a name: use hetero.percentages=[33,66]"),
        ("hetero=[50,100]", "use hetero.percentages=[50,100]"),
        ("hetero=50", "use hetero.percentages=[50]"),
        ("kernel=[sdpa,triton]", "choose one, or sweep over all with -m kernel=sdpa,triton"),
        *(
            (f"{group}={value}", f"{group}={value} is not a name: give one name, such as {group}=")
            for group in (
                "model",
                "partitioner",
                "layout",
                "kernel",
                "transport",
                "tracker",
                "hydra/launcher",
            )
            for value in ("1", "1.5", "null", "true", "[1]", "{a:1}")
        ),
    ],
)
def test_a_group_takes_names_alone(override, message):
    with pytest.raises(UserError) as caught:
        prepared([override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "override", ["experiment=null", "experiment=[smoke,lengths]", "model='x'", "hetero=none,measured"]
)
def test_names_of_groups_are_taken(override):
    assert prepared([override]) == [override]


@pytest.mark.parametrize(
    "argument", ["--bad", "--experimental-rerun=x", "prompt_text=a\udcff", "seq_len=1.0001k"]
)
def test_what_hydra_could_not_take_is_refused(argument):
    with pytest.raises(UserError, match=r"unrecognized|not supported|not UTF-8|is 1024\.1 tokens"):
        prepared([argument])


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("4k", 4096), ("64K", 65536), ("0.5M", 524288), ("1_000", 1000)]
)
def test_a_token_count_is_read(text, tokens):
    assert token_count(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "4kb", "4 k", "1e3", "four", "1.0001k", "4.5"])
def test_other_text_is_no_token_count(text):
    with pytest.raises(UserError):
        token_count(text)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("gpu", ("auto", "cpu", "cuda"), "; did you mean cuda?"),
        ("cude", ("auto", "cpu", "cuda"), "; did you mean cuda?"),
        ("bf16", ("float32", "bfloat16", "float16"), "; did you mean bfloat16?"),
        ("gpu", ("lut", "even"), ""),
        ("xyz", ("lut", "even"), ""),
    ],
)
def test_a_hint_means_the_same_thing(word, known, hint):
    assert did_you_mean(word, known) == hint


def test_utf_8_is_text_in_an_ascii_locale(monkeypatch):
    """There Python takes each byte of it for a lone surrogate."""
    monkeypatch.setattr("os.fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert prepared(["label=gr\udcc3\udcb6\udcc3\udc9fe"]) == ["label=größe"]
