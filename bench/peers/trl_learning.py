"""A fine-tuning run by TRL on given samples in a given order: `trl_learning.py MODEL ASKED.json ANSWER.json`.

Started by `learning.py` with the interpreter that has TRL. Each step takes the next samples of the list.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer


class InOrder(SFTTrainer):
    """A trainer that takes samples as they come."""

    def _get_train_sampler(self, *args, **kwargs) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


@torch.no_grad()
def mean_loss(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Return the mean negative log-probability of all trained tokens, a sample at a time."""
    total, count = 0.0, 0
    for row in rows:
        ids, trained = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"]).bool()
        logprobs = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
        picked = logprobs.gather(1, ids[1:, None])[:, 0][trained[1:]]
        total -= float(picked.double().sum())
        count += len(picked)
    return total / count


def main() -> None:
    model_path, asked_path, answer_path = sys.argv[1:]
    with open(asked_path, encoding="utf-8") as file:
        asked = json.load(file)
    torch.set_num_threads(asked["threads"])
    set_seed(asked["seed"])
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, asked["dtype"]),
                                                 attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model, args=SFTConfig(
                output_dir=folder, max_steps=asked["steps"], per_device_train_batch_size=asked["batch_size"],
                learning_rate=asked["learning_rate"], lr_scheduler_type="constant", weight_decay=0.0,
                max_grad_norm=1.0, max_length=asked["max_tokens"], completion_only_loss=True,
                gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none",
                save_strategy="no", logging_steps=1, disable_tqdm=True, optim="adamw_torch_fused",
                seed=asked["seed"]),
            train_dataset=Dataset.from_list(asked["rows"]),
            processing_class=AutoTokenizer.from_pretrained(model_path),
            peft_config=LoraConfig(r=asked["rank"], lora_alpha=asked["alpha"], lora_dropout=0.0,
                                   target_modules="all-linear", task_type="CAUSAL_LM"))
        trainer.model.eval()
        before = mean_loss(trainer.model, asked["held_out"])
        trainer.train()
        trainer.model.eval()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        answer = {"losses": losses, "before": before, "after": mean_loss(trainer.model, asked["held_out"])}
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
