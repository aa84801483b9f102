"""Between Gymnasium's spaces and tensors."""

from .actions import ActionScaler, check_action_space
from .as_json import shown, space_from_json, space_to_json
from .observations import ImageFeatures, Observation, ObservationCodec, VectorFeatures

__all__ = [
    "ActionScaler",
    "ImageFeatures",
    "Observation",
    "ObservationCodec",
    "VectorFeatures",
    "check_action_space",
    "shown",
    "space_from_json",
    "space_to_json",
]
