"""The registry of one kind of choice: its built-in entries and those that other distributions add.

    spec = KERNELS["cudnn"]         # UserError, with a suggestion, for an unknown name
    KERNELS.check("auto")           # also takes the word auto
    provider = spec.load()          # imports the implementation; nothing is imported before

A distribution adds a choice through an entry point whose value is a spec:

    [project.entry-points."ringexp.kernels"]
    mine = "my_package.ringexp_kernel:SPEC"

The module of the spec is imported by every command, so it should import no torch. The implementation, which
the spec names as text, is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from ringexp.errors import UserError

AUTO = "auto"
"""The word that stands for the choice that suits device and machine."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of a kind.

    Attributes:
        name: the word that a user writes.
        summary: one line for help texts.
        implementation: "module:attribute" of the code that carries it out; "" if no code is needed.
        aliases: other words for it, which error messages translate.
    """

    name: str
    summary: str
    implementation: str = ""
    aliases: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import the implementation and return it. Raises UserError if it cannot be imported."""
        module, _, attribute = self.implementation.partition(":")
        try:
            return getattr(import_module(module), attribute) if attribute else import_module(module)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"{self.name} needs {self.implementation}, which fails: {error}") from error


Spec = TypeVar("Spec", bound=Choice)


class Registry(Generic[Spec]):
    """All choices of one kind, by name: the built-in ones in their order, then those of plug-ins by name."""

    def __init__(
        self, key: str, kind: type[Spec], builtin: Iterable[Spec], group: str = "", has_auto: bool = False
    ) -> None:
        """Collect the built-in choices.

        Args:
            key: the setting that names a choice, for messages, such as `kernel`.
            kind: the class of the specs.
            builtin: the choices that ringexp has itself.
            group: the group of entry points that add choices; "": nobody can add any.
            has_auto: whether the setting also takes the word auto.
        """
        self.key = key
        self.has_auto = has_auto
        self._kind = kind
        self._builtin = {spec.name: spec for spec in builtin}
        self._group = group

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all choices."""
        return tuple(self._specs)

    @property
    def options(self) -> tuple[str, ...]:
        """All words that the setting takes: the names, after `auto` where there is that."""
        return (AUTO, *self.names) if self.has_auto else self.names

    def __getitem__(self, name: str) -> Spec:
        """Return the choice of this name; raise UserError, with a suggestion, if there is none."""
        spec = self.get(name)
        if spec is None:
            raise self._unknown(name, self.names)
        return spec

    def get(self, name: str) -> Spec | None:
        """Return the choice of this name, or None: results may name choices that are not installed here."""
        return self._builtin.get(name) or self._specs.get(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[Spec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def check(self, name: str, key: str = "") -> None:
        """Raise UserError, with a suggestion, unless the setting takes this word.

        Args:
            name: the word.
            key: the setting's name in the message; "": the registry's own.
        """
        if not (self.has_auto and name == AUTO) and name not in self:
            raise self._unknown(name, self.options, key)

    def suggestion(self, word: str) -> str:
        """Return the end of an error message that names the choice a wrong word stands for, or ""."""
        return nearest(word, self.options, self.aliases)

    @property
    def aliases(self) -> dict[str, str]:
        """The name of a choice by each of its aliases."""
        return {alias: spec.name for spec in self for alias in spec.aliases}

    @cached_property
    def _specs(self) -> dict[str, Spec]:
        specs = dict(self._builtin)
        for point in sorted(
            entry_points(group=self._group) if self._group else (), key=lambda point: point.name
        ):
            spec = self._plugin(point)
            if spec.name in specs:
                raise UserError(f"{_where(point)} adds {self.key}={spec.name}, which exists already")
            specs[spec.name] = spec
        return specs

    def _plugin(self, point: EntryPoint) -> Spec:
        """Import the spec of an entry point. Raises UserError, naming the distribution, if that fails."""
        try:
            spec = point.load()
        except Exception as error:  # whatever a foreign module raises
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{_where(point)} cannot be imported: {why}; mend or uninstall it") from error
        if not isinstance(spec, self._kind):
            raise UserError(f"{_where(point)} must be a {self._kind.__name__}, but it is {spec!r}")
        return spec

    def _unknown(self, name: str, allowed: Iterable[str], key: str = "") -> UserError:
        hint = self.suggestion(str(name))
        return UserError(f"{key or self.key}={name} is unknown; choose one of {', '.join(allowed)}{hint}")


def nearest(word: str, names: Iterable[str], aliases: Mapping[str, str]) -> str:
    """Return the end of an error message that suggests a name for a wrong word, or "".

    Args:
        word: what the user wrote.
        names: the words that are allowed.
        aliases: the allowed word by other words for it; one of them comes before the nearest spelling.
    """
    names = list(names)
    alias = aliases.get(word.lower())
    close = [alias] if alias in names else get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _where(point: EntryPoint) -> str:
    owner = f" of {point.dist.name}" if point.dist else ""
    return f"the plug-in {point.value}{owner} (entry point {point.group})"
