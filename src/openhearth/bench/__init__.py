"""Measured speed: of this machine, and of a model on it."""

from openhearth.bench.machine import LoadMeter, Rate, measure_bandwidth, measure_matmul
from openhearth.bench.profile import KernelTime, StepProfile, profile_steps
from openhearth.bench.throughput import (
    Case,
    Row,
    Timed,
    Yardsticks,
    limit_rate,
    list_cases,
    measure_rows,
    open_engine,
    prefill_flops,
    rate_of,
    run_prompts,
    weight_bytes_read,
    weights_name,
)

__all__ = ["Case", "KernelTime", "LoadMeter", "Rate", "Row", "StepProfile", "Timed", "Yardsticks",
           "limit_rate", "list_cases", "measure_bandwidth", "measure_matmul", "measure_rows", "open_engine",
           "prefill_flops", "profile_steps", "rate_of", "run_prompts", "weight_bytes_read", "weights_name"]
