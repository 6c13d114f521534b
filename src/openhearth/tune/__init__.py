"""Adapting a model: data to samples, samples to packs, packs to gradients, gradients to weights."""

from openhearth.tune.data import Refusal, Sample, SampleSet
from openhearth.tune.derive import Plan
from openhearth.tune.jobs import Job, prepare, run_job
from openhearth.tune.settings import SftSettings, build_settings, read_recipe
from openhearth.tune.training import StepMetrics

__all__ = ["Job", "Plan", "Refusal", "Sample", "SampleSet", "SftSettings", "StepMetrics", "build_settings",
           "prepare", "read_recipe", "run_job"]
