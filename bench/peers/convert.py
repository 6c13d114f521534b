"""Derive every program's files from one GGUF: `python bench/peers/convert.py FILE.gguf --home FOLDER`.

All start from the same weights. llama.cpp's own quantiser writes Q4_0, Q8_0 and BF16 files (as a user of
llama.cpp gets them: a tied output matrix stays in 8 bits in the 4-bit file); transformers reads FILE and
saves a bfloat16 folder; optimum-intel turns that folder into OpenVINO folders. Each step runs in the
environment of `install.py` that has the tool and leaves `FOLDER/models/<name>`, written last.

Does not: fetch FILE. `hearth pull smollm2` does; without FILE that model is looked up in the store.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from install import DEFAULT_HOME, python_of, read_installed

GGUF_TYPES = {"Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""Values of `enum llama_ftype` in llama.cpp's include/llama.h."""
OPENVINO_FLAGS = {"bf16": [], "int8": ["--weight-format", "int8"],
                  "int4": ["--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"]}
"""Without a format a small model keeps its own, bfloat16 here."""


def quantise(source: str, target: str, type_name: str) -> None:
    """Write a GGUF file of another type (in the environment `llama.cpp`)."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = GGUF_TYPES[type_name], True, os.cpu_count()
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama.cpp's quantiser gave {code}")


def save_folder(source: str, target: str, _: str) -> None:
    """Save a bfloat16 folder with a tokenizer (in the environment `transformers`)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = os.path.split(source)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    # A model read from GGUF refuses to be saved, though its weights are plain numbers by now.
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)


def export_openvino(source: str, target: str, name: str) -> None:
    """Export a folder for OpenVINO (in the environment `openvino-genai`)."""
    tool = Path(sys.executable).with_name("optimum-cli")
    subprocess.run([tool, "export", "openvino", "--model", source, "--task", "text-generation-with-past",
                    *OPENVINO_FLAGS[name], target], check=True)


STEPS = {"quantise": quantise, "save_folder": save_folder, "export_openvino": export_openvino}


def convert(source: Path, home: Path) -> list[Path]:
    """Make what is missing; returns the files and folders that exist afterwards."""
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = models / "hf-bf16"
    wanted = [("llama.cpp", "quantise", source, models / f"{name}.gguf", name) for name in GGUF_TYPES]
    wanted.append(("transformers", "save_folder", source, folder, "bf16"))
    wanted += [("openvino-genai", "export_openvino", folder, models / f"openvino-{name}", name)
               for name in OPENVINO_FLAGS]
    for peer, step, origin, target, name in wanted:
        if target.exists() or not origin.exists() or "missing" in read_installed(home, peer):
            continue
        part = target.with_name(f"{target.stem}.part{target.suffix}")
        shutil.rmtree(part, ignore_errors=True)
        done = subprocess.run([python_of(home, peer), __file__, "--step", step, str(origin), str(part), name],
                              stdout=sys.stderr)
        if done.returncode:
            print(f"{target.name}: {step} failed ({done.returncode})", file=sys.stderr)
            continue
        part.rename(target)
    return [target for *_, target, _ in wanted if target.exists()]


def find_default() -> Path:
    """Return the default model's file in the store (needs openhearth)."""
    from openhearth import hub
    from openhearth.config import Config

    return hub.pull(hub.DEFAULT_MODEL, Config.from_env()).path


def main() -> int:
    if sys.argv[1:2] == ["--step"]:
        STEPS[sys.argv[2]](*sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.gguf")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    options = parser.parse_args()
    for path in convert((options.file or find_default()).absolute(), options.home):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
