"""Names of settings, for messages and for keys that do not exist."""

from ringexp.configure.compose import known_keys, unknown_key


def test_every_setting_has_a_dotted_name_once():
    keys = known_keys()
    assert len(keys) == len(set(keys))
    assert {"seq_len", "hetero.drift.kind", "partitioner.adaptive.memory", "split"} <= set(keys)


def test_an_unknown_setting_is_named_with_the_nearest():
    assert unknown_key("seqlen", known_keys()).startswith("there is no setting seqlen; did you mean seq_len?")
    assert "did you mean split?" in unknown_key("shard", known_keys())
