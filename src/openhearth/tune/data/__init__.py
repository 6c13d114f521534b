"""Training data: rows of files to samples of token ids with the tokens that are trained marked."""

from openhearth.tune.data.order import Order
from openhearth.tune.data.preferences import PreferenceRenderer
from openhearth.tune.data.reading import Row, read_rows
from openhearth.tune.data.records import Preference, Refusal, Sample
from openhearth.tune.data.rendering import Renderer
from openhearth.tune.data.samples import SampleSet, load_samples

__all__ = ["Order", "Preference", "PreferenceRenderer", "Refusal", "Renderer", "Row", "Sample", "SampleSet",
           "load_samples", "read_rows"]
