"""A small decoder of our own that obeys the forward contract of `models`, for testing the engine alone.

Attention is written with a loop per sequence and shares nothing with the kernels.
"""

import torch

from openhearth.spec import ModelSpec, RopeSpec

# T packed tokens, D model, K kv heads, E head size, C context


def tiny_spec(**overrides):
    shape = dict(model_type="tiny", vocab_size=97, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2,
                 head_dim=8, intermediate_size=32, max_position=64, rms_norm_eps=1e-5, is_tied=True,
                 has_attention_bias=False, has_mlp_bias=False, dtype="float32")
    return ModelSpec(**{"rope": RopeSpec(), **shape, **overrides})


class Decoder(torch.nn.Module):
    """Embeddings of token and position, then layers of attention and a two-layer network.

    num_forwards and num_tokens count what was computed; widest is the largest pack seen.
    """

    def __init__(self, spec=None, seed=0):
        super().__init__()
        self.spec = spec or tiny_spec()
        self.dtype = torch.float32
        width, inner = self.spec.hidden_size, self.spec.num_kv_heads * self.spec.head_dim
        draw = torch.Generator().manual_seed(seed)

        def weight(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=draw) * shape[-1] ** -0.5)

        self.tokens = torch.nn.Parameter(torch.randn(self.spec.vocab_size, width, generator=draw))
        self.places = torch.nn.Parameter(torch.randn(self.spec.max_position, width, generator=draw))
        self.layers = torch.nn.ModuleList()
        for _ in range(self.spec.num_layers):
            layer = torch.nn.Module()
            layer.q, layer.k, layer.v = weight(inner, width), weight(inner, width), weight(inner, width)
            layer.o, layer.up = weight(width, inner), weight(2 * width, width)
            layer.down = weight(width, 2 * width)
            self.layers.append(layer)
        self.num_forwards = self.num_tokens = self.widest = 0

    def forward(self, token_ids_T, positions_T, attn):
        self.num_forwards += 1
        self.num_tokens += len(token_ids_T)
        self.widest = max(self.widest, len(token_ids_T))
        hidden_TD = self.tokens[token_ids_T] + self.places[positions_T]
        for index, layer in enumerate(self.layers):
            hidden_TD = hidden_TD + self._attend(layer, index, hidden_TD, attn) @ layer.o.T
            hidden_TD = hidden_TD + torch.tanh(hidden_TD @ layer.up.T) @ layer.down.T
        return hidden_TD

    def logits(self, hidden_RD):
        return (hidden_RD @ self.tokens.T).float() * 0.3

    def _attend(self, layer, index, hidden_TD, attn):
        shape = (-1, self.spec.num_kv_heads, self.spec.head_dim)
        queries, keys, values = ((hidden_TD @ w.T).view(shape) for w in (layer.q, layer.k, layer.v))
        if attn.cache is not None:
            attn.cache.keys[index].flatten(0, 1)[attn.slots_T] = keys
            attn.cache.values[index].flatten(0, 1)[attn.slots_T] = values
        out = torch.empty_like(queries)
        for s, length in enumerate(attn.context_lens):
            start, end = attn.query_starts[s], attn.query_starts[s + 1]
            if attn.cache is None:
                keys_C, values_C = keys[start:end], values[start:end]
            else:
                pages = attn.page_table_SP[s]
                keys_C = attn.cache.keys[index][pages].flatten(0, 1)[:length]
                values_C = attn.cache.values[index][pages].flatten(0, 1)[:length]
            is_later = torch.arange(length) > torch.arange(length - (end - start), length)[:, None]
            scores = torch.einsum("tke,cke->ktc", queries[start:end], keys_C) * self.spec.head_dim**-0.5
            weights = scores.masked_fill(is_later, -torch.inf).softmax(-1)
            out[start:end] = torch.einsum("ktc,cke->tke", weights, values_C)
        return out.flatten(1)
