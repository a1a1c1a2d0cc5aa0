#!/usr/bin/env python3
"""Seeds for the fuzz targets of the model files -> corpus_gguf/ and corpus_safetensors/ beside this script.

    pip install gguf safetensors numpy
    ./make_corpus.py
"""
import json
import pathlib
import shutil

import gguf
import numpy as np
from safetensors.numpy import save

HERE = pathlib.Path(__file__).resolve().parent
DIM, VOCAB = 16, 24


def byte_alphabet():
    """Byte-level BPE's name of each byte."""
    plain = [b for b in range(256) if 33 <= b <= 126 or (161 <= b and b != 173)]
    other = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + other.index(b)) for b in range(256)]


def gguf_names(arch, vocab):
    names = {"token_embd": (vocab, DIM), "output_norm": (DIM,)}
    layer = {"attn_norm": (DIM,), "attn_q": (DIM, DIM), "attn_k": (DIM, DIM), "attn_v": (DIM, DIM),
             "attn_output": (DIM, DIM), "ffn_norm": (DIM,), "ffn_gate": (DIM, DIM), "ffn_up": (DIM, DIM),
             "ffn_down": (DIM, DIM)}
    if arch != "llama":
        layer |= {"attn_q_norm": (DIM,), "attn_k_norm": (DIM,)}
    if arch == "gemma3":
        layer |= {"post_attention_norm": (DIM,), "post_ffw_norm": (DIM,)}
    return names | {f"blk.0.{k}": v for k, v in layer.items()}


def make_gguf(path, arch, tokenizer):
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(64)
    w.add_embedding_length(DIM)
    w.add_block_count(1)
    w.add_feed_forward_length(DIM)
    w.add_head_count(1)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(10000.0)
    if arch == "gemma3":
        w.add_sliding_window(8)
        w.add_array("gemma3.attention.sliding_window_pattern", [True])
    if arch == "qwen3":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(16)
    w.add_tokenizer_model(tokenizer)
    if tokenizer == "llama":
        tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "b", "ab", "\u2581a"]
        tokens += [f"t{i}" for i in range(VOCAB - len(tokens))]
        w.add_token_list(tokens)
        w.add_token_scores([-float(i) for i in range(VOCAB)])
        w.add_token_types([2, 3, 3, 6] + [1] * (VOCAB - 4))
    else:
        tokens = byte_alphabet() + ["ab", "abc", "<|end_of_text|>", "<|begin_of_text|>"]
        w.add_tokenizer_pre("llama-bpe" if arch == "llama" else "qwen2")
        w.add_token_list(tokens)
        w.add_token_types([1] * (len(tokens) - 2) + [3, 3])
        w.add_token_merges(["a b", "ab c"])
        w.add_bos_token_id(len(tokens) - 1)
        w.add_eos_token_id(len(tokens) - 2)
    if arch == "llama":
        w.add_tensor("rope_freqs.weight", np.ones(DIM // 2, dtype=np.float32))
    for name, shape in gguf_names(arch, len(tokens)).items():
        w.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float16 if len(shape) == 2 else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_safetensors(path, config):
    layer = {"input_layernorm": (DIM,), "post_attention_layernorm": (DIM,), "self_attn.q_proj": (DIM, DIM),
             "self_attn.k_proj": (DIM, DIM), "self_attn.v_proj": (DIM, DIM), "self_attn.o_proj": (DIM, DIM),
             "mlp.gate_proj": (DIM, DIM), "mlp.up_proj": (DIM, DIM), "mlp.down_proj": (DIM, DIM)}
    if config["model_type"] != "llama":
        layer |= {"self_attn.q_norm": (DIM,), "self_attn.k_norm": (DIM,)}
    if config["model_type"] == "gemma3_text":
        layer |= {"pre_feedforward_layernorm": (DIM,), "post_feedforward_layernorm": (DIM,)}
    shapes = {"model.embed_tokens": (VOCAB, DIM), "model.norm": (DIM,)} | {f"model.layers.0.{k}": v for k, v in layer.items()}
    data = save({f"{k}.weight": np.zeros(v, dtype=np.float16) for k, v in shapes.items()}, {"format": "pt"})
    path.write_bytes(json.dumps(config).encode() + b"\0" + data)


def main():
    for folder in ("corpus_gguf", "corpus_safetensors"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for arch, tokenizer in (("llama", "gpt2"), ("llama", "llama"), ("qwen3", "gpt2"), ("gemma3", "llama")):
        make_gguf(HERE / "corpus_gguf" / f"{arch}_{tokenizer}.gguf", arch, tokenizer)
    base = dict(hidden_size=DIM, intermediate_size=DIM, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                head_dim=DIM, vocab_size=VOCAB, max_position_embeddings=64, tie_word_embeddings=True)
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    yarn = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=16)
    nested = dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                  sliding_attention=dict(rope_type="default", rope_theta=1e4))
    out = HERE / "corpus_safetensors"
    make_safetensors(out / "llama3", base | dict(model_type="llama", rope_theta=500000.0, rope_scaling=llama3))
    make_safetensors(out / "qwen3", base | dict(model_type="qwen3", rope_parameters=yarn, sliding_window=8,
                                                use_sliding_window=True, max_window_layers=0))
    make_safetensors(out / "gemma3", base | dict(model_type="gemma3_text", rope_parameters=nested, sliding_window=8,
                                                 layer_types=["sliding_attention"], query_pre_attn_scalar=DIM))


main()
