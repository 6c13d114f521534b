"""What limits a row, by hand."""

import pytest
from support.tiny import build_llama

from openhearth.bench import Case, Timed, Yardsticks, limit_rate, rate_of
from openhearth.formats import open_checkpoint
from openhearth.spec import read_spec


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limit")
    build_llama(folder)
    return read_spec(open_checkpoint(folder))


def test_decode_is_limited_by_bytes_or_by_operations(spec):
    case = Case("decode_q8", "decode", 1, 32, 256)
    slow_memory, slow_cores = Yardsticks(1e3, 1e15), Yardsticks(1e15, 1e3)
    read = 5000 + 160 * spec.kv_bytes_per_token(2)
    assert limit_rate(spec, case, slow_memory, 5000, 2) == pytest.approx(1e3 / read)
    assert limit_rate(spec, case, slow_cores, 5000, 2) == pytest.approx(1e3 / spec.flops_per_token(160))


def test_weights_are_read_once_for_a_whole_batch(spec):
    yardsticks = Yardsticks(1e3, 1e15)
    rates = [limit_rate(spec, Case("batch", "batch", count, 64, 128), yardsticks, 10**12, 2)
             for count in (1, 8)]
    assert rates[1] == pytest.approx(8 * rates[0], rel=1e-3)


def test_a_prompt_multiplies_its_positions_and_one_row_of_the_head(spec):
    head = 2 * spec.vocab_size * spec.hidden_size
    flops = spec.flops_per_token(1) + spec.flops_per_token(2) - head
    case = Case("prefill_2", "prefill", 1, 2, 1)
    assert limit_rate(spec, case, Yardsticks(1.0, 1e6), 1, 2) == pytest.approx(2e6 / flops)


def test_rates_count_what_their_rows_say():
    assert rate_of(Case("p", "prefill", 1, 512, 1), Timed(0.5, 9.0, ())) == 1024
    assert rate_of(Case("d", "decode", 1, 32, 11), Timed(1.0, 3.0, ())) == 5
    assert rate_of(Case("b", "batch", 8, 64, 128), Timed(1.0, 2.0, ())) == 512
