"""What the JSON files of runs and evaluations hold: their types, checked at one door where they are
read. Values stay as they are: fields that no type names are kept (but by `converted`)."""

from purify.saving.schema.atoms import check, converted
from purify.saving.schema.evaluations import VERSION, LaterVersion, results
from purify.saving.schema.folders import hashes, settings
from purify.saving.schema.records import metrics, record, signature

__all__ = [
    "LaterVersion",
    "VERSION",
    "check",
    "converted",
    "hashes",
    "metrics",
    "record",
    "results",
    "settings",
    "signature",
]
