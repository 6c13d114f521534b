"""Calls every native kernel many times in a process of its own and prints how its memory grew, as JSON.

Run as `python -m support.leak_probe NUM_CALLS`; tests/native/test_leaks.py reads what it prints.
"""

import ctypes
import functools
import gc
import json
import sys

import torch

from openhearth.kernels.attention import native as attention
from openhearth.kernels.attention.inputs import AttnInput, KvCache
from openhearth.kernels.embedding.native import embed
from openhearth.kernels.glu.native import glu
from openhearth.kernels.linear.native import PackedWeight, linear, linear_trained
from openhearth.kernels.rms_norm.native import add_rms_norm, rms_norm
from openhearth.kernels.rope.reference import compute_rotation, inverse_frequencies
from openhearth.kernels.select import NATIVE_ISAS, missing, native
from openhearth.spec import RopeSpec

NUM_WARM = 30


class HeapInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns: malloc(3), mallinfo(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost")]


def bytes_in_use():
    """Of C's heap, with at least 32 bytes for each of Python's objects."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = HeapInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd + 32 * sys.getallocatedblocks()


def attend_paged(q_TD, k_TC, v_TC, rotation, isa):
    keys, values = torch.zeros(2, 4, 4, 2, 8, dtype=q_TD.dtype).unbind()
    num_rows = len(q_TD)
    attn = AttnInput(query_starts=(0, num_rows), context_lens=(num_rows,), cache=KvCache((keys,), (values,)),
                     slots_T=torch.arange(num_rows), page_table_SP=torch.arange(4)[None])
    return attention.attend(attention.plan_attention(attn), 0, q_TD, k_TC, v_TC, rotation, isa=isa)


def attend_whole(q_TD, k_TC, v_TC, rotation, isa):
    plan = attention.plan_attention(AttnInput.without_cache((len(q_TD),)))
    return attention.attend(plan, 0, q_TD, k_TC, v_TC, rotation, isa=isa)


def train(x_TD, weight_DD):
    x_TD, weight_DD = x_TD.detach().requires_grad_(), weight_DD.detach().requires_grad_()
    h_TD = rms_norm(linear_trained(x_TD, PackedWeight(weight_DD), weight_DD), weight_DD[0], 1e-5)
    glu(h_TD, h_TD).sum().backward()


def calls(isa, dtype):
    """{name: a call of one kernel} on small rows of one type."""
    x_TD, weight_DD = torch.randn(9, 32).to(dtype), torch.randn(32, 32).to(dtype)
    packed = PackedWeight(weight_DD)
    rotation = compute_rotation(RopeSpec(), inverse_frequencies(RopeSpec(), 8), torch.arange(9))
    heads = (x_TD, x_TD[:, :16].contiguous(), x_TD[:, 16:].contiguous(), rotation, isa)
    named = {
        "pack": lambda: PackedWeight(weight_DD).unpack(),
        "linear": lambda: linear(x_TD, packed, isa=isa),
        "rms_norm": lambda: rms_norm(x_TD, weight_DD[0], 1e-5, isa=isa),
        "add_rms_norm": lambda: add_rms_norm(x_TD, x_TD, weight_DD[0], 1e-5, isa=isa),
        "glu": lambda: glu(x_TD, x_TD, isa=isa),
        "embedding": lambda: embed(torch.arange(9), weight_DD, torch.float32, isa=isa),
        "attention": functools.partial(attend_whole, *heads),
        "paged attention": functools.partial(attend_paged, *heads),
    }
    return {f"{name} {isa} {dtype}": call for name, call in named.items()}


def restart_workers(gate_TF=torch.ones(400, 100)):  # several chunks, so that workers are needed
    for count in (3, 2):
        native().set_num_threads(count)
        glu(gate_TF, gate_TF)


def growth(call, num_calls):
    """Bytes in use after the calls and not before: the less of two rounds, for caches that fill late."""
    for _ in range(NUM_WARM):
        call()
    rounds = []
    while not rounds or (len(rounds) < 2 and rounds[0] > num_calls):
        gc.collect()
        before = bytes_in_use()
        for _ in range(num_calls):
            call()
        gc.collect()
        rounds.append(bytes_in_use() - before)
    return min(rounds)


def main():
    torch.manual_seed(0)
    num_calls = int(sys.argv[1])
    named = {"restarting workers": restart_workers,
             "training": functools.partial(train, torch.randn(9, 32), torch.randn(32, 32))}
    for isa in NATIVE_ISAS:
        for dtype in (torch.float32, torch.bfloat16):
            named |= {} if missing(isa) else calls(isa, dtype)
    lost = {"a leak on purpose": functools.partial(ctypes.CDLL(None).malloc, 32)}
    print(json.dumps({name: growth(call, num_calls) for name, call in {**named, **lost}.items()}))


if __name__ == "__main__":
    main()
