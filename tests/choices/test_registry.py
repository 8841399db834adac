"""Choices: lookup with suggestions, lazy implementations, plug-ins through entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from ringexp.choices import (
    KERNELS,
    LAYOUTS,
    PARTITIONERS,
    THROTTLES,
    TRANSPORTS,
    LayoutSpec,
    Registry,
    registry,
)
from ringexp.errors import UserError

SPIRAL = LayoutSpec(name="spiral", summary="round and round", implementation="math:pi")


def test_unknown_names_end_in_one_line_with_a_suggestion():
    with pytest.raises(UserError, match=r"^partitioner=lutt is unknown; choose .*; did you mean lut\?$"):
        PARTITIONERS["lutt"]
    with pytest.raises(UserError, match=r"did you mean gloo\?"):
        TRANSPORTS.check("mpi")


def test_auto_is_an_option_but_no_choice():
    KERNELS.check("auto")
    assert KERNELS.options == ("auto", *KERNELS.names)
    with pytest.raises(UserError, match="kernel=auto is unknown"):
        KERNELS["auto"]


@pytest.mark.parametrize("table", [KERNELS, TRANSPORTS, THROTTLES, PARTITIONERS, LAYOUTS])
def test_every_choice_says_what_it_is(table):
    assert all(spec.summary and "\n" not in spec.summary for spec in table)
    assert len(table.aliases) == sum(len(spec.aliases) for spec in table)


def test_importing_choices_imports_no_heavy_library():
    code = "import sys, ringexp.choices; print({'torch', 'numpy', 'omegaconf'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def with_plugins(monkeypatch, **values):
    points = [EntryPoint(name, value, "ringexp.layouts") for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "ringexp.layouts" else ())
    return Registry("layout", LayoutSpec, LAYOUTS, group="ringexp.layouts")


def test_a_plugin_adds_a_choice(monkeypatch):
    monkeypatch.setattr(registry, "SPIRAL", SPIRAL, raising=False)
    layouts = with_plugins(monkeypatch, spiral="ringexp.choices.registry:SPIRAL")
    assert layouts.names == (*LAYOUTS.names, "spiral")
    assert layouts["spiral"].load() == pytest.approx(3.14159, abs=1e-5)


def test_a_plugin_that_cannot_be_used_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"plug-in no_such:SPEC .*cannot be imported: ModuleNotFoundError"):
        with_plugins(monkeypatch, broken="no_such:SPEC").options  # noqa: B018
    with pytest.raises(UserError, match=r"must be a LayoutSpec, but it is 3\.14"):
        with_plugins(monkeypatch, number="math:pi").options  # noqa: B018
    monkeypatch.setattr(registry, "AGAIN", LAYOUTS["zigzag"], raising=False)
    with pytest.raises(UserError, match="adds layout=zigzag, which exists already"):
        with_plugins(monkeypatch, again="ringexp.choices.registry:AGAIN").options  # noqa: B018
