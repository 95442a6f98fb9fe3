"""The other side of P1 and P4b: the same layers in plain torch, one thread, nothing around them.

Run as a child process: it loads a directory (or some of its layers), says "ready", and then times what each line of
its input asks for. Commands and answers are JSON lines.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import Tensor

from hydra.bench.child import say


class BareLlama:
    """Decode steps over layers [first, end), with a contiguous KV cache for `rows` sequences of equal length."""

    def __init__(self, directory: Path, first: int, end: int, rows: int, context: int, device: str) -> None:
        from safetensors.torch import load_file

        config = json.loads((directory / "config.json").read_text())
        self.n_layers = config["num_hidden_layers"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.eps = config["head_dim"], config["rms_norm_eps"]
        self.rows, self.first, self.end = rows, first, end
        wanted = tuple(f"model.layers.{layer}." for layer in range(first, end))
        if first == 0:
            wanted += ("model.embed_tokens.",)
        if end == self.n_layers:
            wanted += ("model.norm.", "lm_head.")
        self.w: dict[str, Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            held = {name: tensor for name, tensor in load_file(file).items() if name.startswith(wanted)}
            self.w |= {name: tensor.to(device) for name, tensor in held.items()}
        self.dtype = next(iter(self.w.values())).dtype
        shape = (end - first, rows, self.kv_heads, context, self.head_dim)
        self.k, self.v = (torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(2))
        frequency = 1.0 / config["rope_theta"] ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        angles = torch.outer(torch.arange(context).float(), frequency).repeat(1, 2)
        self.cos, self.sin = (table.to(device, self.dtype) for table in (angles.cos(), angles.sin()))

    def step(self, tokens: Tensor, hidden: Tensor | None, at: int) -> Tensor:
        """[rows] token ids (or [rows, hidden] states) at position `at` to states, or to the next ids at the end."""
        x = F.embedding(tokens, self.w["model.embed_tokens.weight"]) if hidden is None else hidden
        for index in range(self.end - self.first):
            x = self._layer(x, index, at)
        if self.end < self.n_layers:
            return x
        x = F.rms_norm(x, (x.shape[-1],), self.w["model.norm.weight"], self.eps)
        return F.linear(x, self.w["lm_head.weight"]).argmax(-1)

    def _layer(self, x: Tensor, index: int, at: int) -> Tensor:
        name = f"model.layers.{self.first + index}."
        width = (x.shape[-1],)
        y = F.rms_norm(x, width, self.w[name + "input_layernorm.weight"], self.eps)
        q, k, v = (F.linear(y, self.w[f"{name}self_attn.{part}_proj.weight"]) for part in "qkv")
        q = self._turn(q.view(self.rows, self.heads, self.head_dim), at)
        self.k[index, :, :, at] = self._turn(k.view(self.rows, self.kv_heads, self.head_dim), at)
        self.v[index, :, :, at] = v.view(self.rows, self.kv_heads, self.head_dim)
        keys, values = self.k[index, :, :, : at + 1], self.v[index, :, :, : at + 1]
        seen = F.scaled_dot_product_attention(q.unsqueeze(2), keys, values, enable_gqa=True)
        x = x + F.linear(seen.reshape(self.rows, -1), self.w[name + "self_attn.o_proj.weight"])
        y = F.rms_norm(x, width, self.w[name + "post_attention_layernorm.weight"], self.eps)
        gated = F.silu(F.linear(y, self.w[name + "mlp.gate_proj.weight"])) * F.linear(
            y, self.w[name + "mlp.up_proj.weight"]
        )
        return x + F.linear(gated, self.w[name + "mlp.down_proj.weight"])

    def _turn(self, x: Tensor, at: int) -> Tensor:
        half = self.head_dim // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), -1)
        return x * self.cos[at] + turned * self.sin[at]


def bare_loop_main() -> None:
    directory, first, end, rows, context = Path(sys.argv[1]), *(int(value) for value in sys.argv[2:6])
    device = sys.argv[6] if len(sys.argv) > 6 else "cpu"
    torch.set_num_threads(1)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length: no fair loop would use it
    with torch.inference_mode():
        llama = BareLlama(directory, first, end, rows, context, device)
        tokens, hidden = torch.arange(rows, device=device) % 64, None
        if first > 0:
            width = llama.w[f"model.layers.{first}.input_layernorm.weight"].numel()
            hidden = torch.randn(rows, width).to(device, llama.dtype)
        for at in range(4):
            llama.step(tokens, hidden, at)
        say("ready")
        for line in sys.stdin:
            say(_run(llama, tokens, hidden, json.loads(line)))


def _run(llama: BareLlama, tokens: Tensor, hidden: Tensor | None, asked: dict[str, Any]) -> dict[str, Any]:
    """{"from": position, "steps": n} or {"from": position, "seconds": s} (the same few positions, over and over).

    Every step is waited for: the next token is read, as whoever streams it must; or the states, as the next stage does.
    """
    start, began_s, steps = asked["from"], time.perf_counter(), 0
    most = asked.get("steps", 1 << 60)
    until_s = began_s + asked.get("seconds", 1e9)
    while steps < most and time.perf_counter() < until_s:
        step_output = llama.step(tokens, hidden, start + (steps if "steps" in asked else steps % 32))
        if hidden is None and llama.end == llama.n_layers:
            tokens = step_output % 64
        step_output.cpu()
        steps += 1
    return {"steps": steps, "seconds": time.perf_counter() - began_s}


if __name__ == "__main__":
    bare_loop_main()
