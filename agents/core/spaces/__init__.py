"""Between Gymnasium's spaces and tensors."""

from .actions import Actions, BoxActions, ClippedActions, DiscreteActions, actions_of, check_actions, takes
from .as_json import shown, space_from_json, space_to_json
from .fields import Fields, FieldSpec, Obs, count_rows, dtype_name, map_obs
from .observations import (
    CombinedFeatures,
    ImageFeatures,
    NumberFeatures,
    Observation,
    ObservationCodec,
    VectorFeatures,
)

__all__ = [
    "Actions",
    "BoxActions",
    "ClippedActions",
    "CombinedFeatures",
    "DiscreteActions",
    "FieldSpec",
    "Fields",
    "ImageFeatures",
    "NumberFeatures",
    "Obs",
    "Observation",
    "ObservationCodec",
    "VectorFeatures",
    "actions_of",
    "check_actions",
    "count_rows",
    "dtype_name",
    "map_obs",
    "shown",
    "space_from_json",
    "space_to_json",
    "takes",
]
