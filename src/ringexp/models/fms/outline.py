"""An FMS model without memory for its weights: whether it can be built, and how large it is."""

from __future__ import annotations

import warnings

import torch
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.choices import did_you_mean
from ringexp.config import FmsModelConfig
from ringexp.errors import UserError
from ringexp.models.fms import facts


def weight_bytes(config: FmsModelConfig, seq_len: int) -> int:
    """Return the bytes of a model's weights. Raises UserError for a model that FMS cannot build."""
    return facts.weight_bytes(outline(config, seq_len))


def outline(config: FmsModelConfig, seq_len: int) -> nn.Module:
    """Return the model on torch's meta device, where tensors have a shape and no memory.

    Raises UserError for an architecture, a variant or an override that FMS does not have or cannot use.
    """
    if config.architecture not in facts.FAMILIES:
        raise UserError(
            f"model.architecture={config.architecture} is not proved on the ring; use one of "
            f"{', '.join(facts.FAMILIES)}{did_you_mean(config.architecture, facts.FAMILIES)}"
        )
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fms_get_model(
                config.architecture,
                config.variant,
                device_type="meta",
                data_type=getattr(torch, config.dtype),
                distributed_strategy="none",
                **{"max_expected_seq_len": seq_len, **config.overrides},
            )
    except Exception as error:  # FMS checks little: whatever it raises is about these values
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.architecture={config.architecture} model.variant={config.variant} "
            f"model.overrides={config.overrides}: FMS says {reason}"
        ) from error
    settings = sorted(vars(model.config))
    unknown = [name for name in config.overrides if name not in settings]
    if unknown:  # FMS itself ignores them
        raise UserError(
            f"model.overrides.{unknown[0]} is no setting of FMS's model; it has {', '.join(settings)}"
        )
    return model
