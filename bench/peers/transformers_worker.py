"""transformers in plain torch: `generate` with its own cache. Settings: threads; dtype; attention."""

from __future__ import annotations

import os
import time

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
from worker import serve


class Clock(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Transformers:
    """A loaded folder; bfloat16 for speed, float32 (`"dtype"`) as the truth of perplexity."""

    def __init__(self, path: str, settings: dict) -> None:
        torch.set_num_threads(settings["threads"])
        folder, name = os.path.split(path)
        kwargs = {"dtype": getattr(torch, settings["dtype"]), "attn_implementation": settings["attention"]}
        if name.endswith(".gguf"):
            # transformers keeps the blocks of a GGUF file and expands them in every call; once is faster.
            read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, **kwargs)
            self.model = AutoModelForCausalLM.from_config(read.config, **kwargs)
            self.model.load_state_dict(read.state_dict())
        else:
            self.model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
        self.model.eval()
        self.model.generation_config.eos_token_id = None
        self.flags = f"{settings['dtype']}, {settings['attention']}, {settings['threads']} threads"

    @torch.inference_mode()
    def run(self, prompts, new_tokens):
        clock = Clock()
        ids = torch.tensor(prompts)
        started = time.perf_counter()
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                  max_new_tokens=new_tokens, pad_token_id=0,
                                  stopping_criteria=StoppingCriteriaList([clock]))
        return started, clock.times[0], clock.times[-1], out[:, ids.shape[1]:].tolist()

    @torch.inference_mode()
    def score(self, ids):
        """Log-probability of every token but the first."""
        ids = torch.tensor(ids)
        logprobs = torch.log_softmax(self.model(ids[None]).logits[0, :-1].float(), dim=-1)
        return logprobs.gather(1, ids[1:, None])[:, 0].tolist()

    def sample(self, prompts, new_tokens):
        """Log-probabilities of drawn tokens, as the sampler saw them and as training's forward does."""
        torch.manual_seed(0)
        ids = torch.tensor(prompts)
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0,
                                  top_k=0, top_p=1.0, max_new_tokens=new_tokens, pad_token_id=0,
                                  return_dict_in_generate=True, output_logits=True)
        drawn = out.sequences[:, ids.shape[1]:]
        logits = self.model.train()(out.sequences, use_cache=False).logits[:, ids.shape[1] - 1:-1]
        self.model.eval()
        return [torch.log_softmax(one.float(), -1).gather(-1, drawn[..., None])[..., 0].tolist()
                for one in (torch.stack(out.logits, 1), logits.detach())]


if __name__ == "__main__":
    serve(Transformers)
