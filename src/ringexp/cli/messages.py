"""Turn exceptions into the one line that the command line shows; tell which need no traceback."""

from __future__ import annotations

import errno
import sys
from traceback import walk_tb

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from ringexp.choices import did_you_mean
from ringexp.cli.arguments import last_value, profile_hint
from ringexp.config import Config
from ringexp.configure.compose import known_keys, unknown_key
from ringexp.errors import RunFailed, UserError

DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""Error numbers of a disk or a folder that ringexp's code cannot fix."""


def is_expected(error: Exception) -> bool:
    """Tell whether the message explains the error fully, so that ringexp's traceback would add nothing."""
    if isinstance(error, OSError):
        return error.errno in DISK
    return isinstance(error, UserError | RunFailed | HydraException | OmegaConfBaseException)


def raised_by_hydra(error: BaseException) -> bool:
    """Tell whether Hydra raised the error, or code outside of ringexp that Hydra called.

    Then the command line or the config is wrong.
    """
    modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in walk_tb(error.__traceback__)]
    packages = ("hydra", "ringexp", "hydra_plugins")
    frames = [name for name in modules if name.partition(".")[0] in packages]
    return bool(frames) and frames[-1].startswith("hydra.")


def hydra_line(error: Exception) -> str:
    """Return the one line for an exception that Hydra raised and whose type is not Hydra's own."""
    if isinstance(error, OSError):
        return folder_line(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the settings cannot be composed: {text} (python -m ringexp --help lists them)"


def folder_line(error: OSError) -> str:
    """Return the one line for a folder of results that cannot be created or written."""
    keys = ("hydra.run.dir", "hydra.sweep.dir", "output_root")
    values = {key: value for key in keys if (value := last_value(sys.argv[1:], key))}
    key, value = next(iter(values.items()), ("output_root", Config().output_root))
    where = f"{error.filename}: " if error.filename else "the working folder is gone: "
    why = error.strerror or str(error)
    return f"{key}={value} cannot be written to ({where}{why}); choose a folder that can, with {key}=DIR"


def one_line(error: Exception) -> str:
    """Return an exception's message on one line. For an unknown key or choice, suggest the nearest one."""
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        key = getattr(cause, "full_key", None) or ""
        if "is not in struct" in str(cause) or "not in " in str(cause):
            return unknown_key(key, known_keys())
        return _with_key(cause)
    if isinstance(error, MissingConfigException) and error.options:
        return _unknown_choice(error.missing_cfg_file or "", list(error.options))
    if isinstance(error, OmegaConfBaseException):
        return _with_key(error)
    return " ".join(str(error).split())


def _with_key(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    first = str(error).splitlines()[0]
    if (refused := f"{UserError.__name__} raised while resolving interpolation: ") in first:
        return first.partition(refused)[2]
    return f"{key}: {first}" if key else first


def _unknown_choice(missing: str, options: list[str]) -> str:
    group, _, choice = missing.rpartition("/")
    profile = profile_hint(choice) if group == "hetero" else ""
    hint = f"; for these percentages use {profile}" if profile else did_you_mean(choice, options)
    return f"{group}={choice} is unknown; choose one of {', '.join(options)}{hint}"
