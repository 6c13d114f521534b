"""TRL's trainers, and a plain PyTorch loop, as a worker that trains.

Settings: work (a name of `training_work.py`), rows (a JSON file of token ids), threads, micro_batch (samples
of one forward). Weights and activations are bfloat16, without autocast or gradient checkpointing, which would
only add time; the optimizer is torch's fused AdamW.
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

import torch
from training_work import ALPHA, QUESTIONS, RANK, RATE, WORKS, Work, reward
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from worker import Steps, serve_steps

MANY = 10**6


class Held(TrainerCallback):
    """Answers when a step ends and holds the trainer until the next is asked for."""

    def __init__(self, steps: Steps, work: Work, flags: str) -> None:
        self.steps, self.work, self.flags = steps, work, flags

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.steps.done(self.work.rows * self.work.length, self.flags)


def trainer_settings(work: Work, micro_batch: int, folder: str) -> dict[str, Any]:
    """Return what both trainers share."""
    return {"output_dir": folder, "max_steps": MANY, "learning_rate": RATE, "lr_scheduler_type": "constant",
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": work.rows // micro_batch, "gradient_checkpointing": False,
            "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no",
            "logging_strategy": "no", "disable_tqdm": True, "max_grad_norm": 1.0,
            "optim": "adamw_torch_fused"}


def load(model: str) -> Any:
    """Return the model in bfloat16."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")


def lora(work: Work) -> Any:
    """Return PEFT's settings, None where all weights learn."""
    if work.weights == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear",
                      task_type="CAUSAL_LM")


def grpo(model: str, settings: dict, work: Work, steps: Steps) -> None:
    """TRL's GRPOTrainer; the stop token is kept from being drawn."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    found = {len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True,
                                               return_dict=True)["input_ids"]) for prompt in prompts}
    if found != {work.prompt_tokens}:
        raise SystemExit(f"prompts have {found} tokens, not {work.prompt_tokens}")
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            load(model), reward_funcs=lambda completions, **_: [reward(one[0]["content"])
                                                                for one in completions],
            args=GRPOConfig(**trainer_settings(work, settings["micro_batch"], folder),
                            num_generations=work.rows // len(QUESTIONS), beta=0.0, temperature=1.0,
                            max_completion_length=work.completion_tokens,
                            generation_kwargs={"min_new_tokens": work.completion_tokens}),
            train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer,
            peft_config=lora(work),
            callbacks=[Held(steps, work, describe(settings))])
        steps.time(trainer, "_generate", "generation")
        steps.time(trainer, "_compute_loss", "forward")
        steps.time(trainer.accelerator, "backward", "backward")
        trainer.train()


def sft(model: str, settings: dict, work: Work, steps: Steps) -> None:
    """TRL's SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            load(model), args=SFTConfig(**trainer_settings(work, settings["micro_batch"], folder),
                                        max_length=work.length),
            train_dataset=Dataset.from_dict({"input_ids": read_rows(settings["rows"])}),
            processing_class=AutoTokenizer.from_pretrained(model), peft_config=lora(work),
            callbacks=[Held(steps, work, describe(settings))])
        steps.time(trainer, "compute_loss", "forward")
        steps.time(trainer.accelerator, "backward", "backward")
        trainer.train()


def loop(model: str, settings: dict, work: Work, steps: Steps) -> None:
    """A fine-tuning loop as one writes it by hand."""
    learner, rows = load(model).train(), torch.tensor(read_rows(settings["rows"]))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=RATE, fused=True)
    steps.time(learner, "forward", "forward")
    steps.time(torch.Tensor, "backward", "backward")
    micro = settings["micro_batch"]
    while True:
        for ids in rows.split(micro):
            loss = learner(input_ids=ids, labels=ids, use_cache=False).loss
            (loss * (micro / work.rows)).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.done(work.rows * work.length, describe(settings))


def describe(settings: dict) -> str:
    """Return the settings in words."""
    return f"bfloat16, sdpa, {settings['micro_batch']} sequences at once, {settings['threads']} threads"


def read_rows(path: str) -> list[list[int]]:
    """Return the token ids of a step's samples."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def train(model: str, settings: dict, steps: Steps) -> None:
    """Run one work until nobody asks any more."""
    torch.set_num_threads(settings["threads"])
    work = WORKS[settings["work"]]
    run = grpo if work.prompt_tokens else loop if work.weights == "full" else sft
    run(model, settings, work, steps)


if __name__ == "__main__":
    serve_steps(train)
