"""Weights, cut once for every tensor-parallel degree, and read back by the stage.

What other parts of shuntserve (and engines of third parties) use:

    store = open_store("s3://bucket/prefix", registry)
    manifest = load_manifest(store, parse_model_name("base/model"))
    entries = stage_tensors(manifest, tp=2, rank=0, layers=range(0, 14), first=True, last=False)
    region = memoryview(bytearray(region_bytes(entries)))     # or shared memory
    read_stage(store, entries, lambda e: region[e.offset : e.offset + e.nbytes])
"""

from shuntserve_core.weights.layout import ModelName, parse_model_name
from shuntserve_core.weights.manifest import Manifest
from shuntserve_core.weights.reading import DamagedObject, ReadReport, read_pieces, read_stage
from shuntserve_core.weights.stages import TensorEntry, region_bytes, stage_tensors, whole_model
from shuntserve_core.weights.stores import load_manifest, models_in, open_store

__all__ = [
    "DamagedObject",
    "Manifest",
    "ModelName",
    "ReadReport",
    "TensorEntry",
    "load_manifest",
    "models_in",
    "open_store",
    "parse_model_name",
    "read_pieces",
    "read_stage",
    "region_bytes",
    "stage_tensors",
    "whole_model",
]
