"""Adapting a model: data to samples, samples to packs, packs to gradients, gradients to weights."""

from openhearth.tune.chain import (
    Chain,
    begin_chain,
    build_chain,
    finish_chain,
    plan_chain,
    prepare_stage,
    write_chain_page,
)
from openhearth.tune.data import Preference, Refusal, Sample, SampleSet
from openhearth.tune.derive import Plan
from openhearth.tune.jobs import load_learner, open_model, prepare, run_job
from openhearth.tune.methods.distill import DistillWork
from openhearth.tune.methods.grpo import GrpoWork
from openhearth.tune.methods.preference import PreferenceWork
from openhearth.tune.methods.records import Job, Learner, Opened
from openhearth.tune.methods.sft import SftWork
from openhearth.tune.settings import (
           DistillSettings,
           DpoSettings,
           GrpoSettings,
           SftSettings,
           TuneSettings,
           build_settings,
           read_recipe,
)
from openhearth.tune.teaching import sample_teacher
from openhearth.tune.training import StepMetrics

__all__ = ["Chain", "DistillSettings", "DistillWork", "DpoSettings", "GrpoSettings", "GrpoWork", "Job",
           "Learner", "Opened", "Plan", "Preference", "PreferenceWork", "Refusal", "Sample", "SampleSet",
           "SftSettings", "SftWork", "StepMetrics", "TuneSettings", "begin_chain", "build_chain",
           "build_settings", "finish_chain", "load_learner", "open_model", "plan_chain", "prepare",
           "prepare_stage", "read_recipe", "run_job", "sample_teacher", "write_chain_page"]
