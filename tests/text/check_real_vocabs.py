#!/usr/bin/env python3
"""Compares our tokenizer with llama.cpp, transformers and sentencepiece on real vocabularies.

Not part of the test run: it needs vocabularies that are not ours to give away and an hour's worth of packages.

    pip install transformers gguf sentencepiece protobuf torch
    cc tests/fixtures/text/llama_oracle.c ...            (see its first lines)
    check_real_vocabs.py --tool build/bin/text_tool --llama ./llama_oracle \
        spm:gemma-3-270m.gguf spm-prefix:ggml-vocab-llama-spm.gguf llama3:ggml-vocab-llama-bpe.gguf qwen2:ggml-vocab-qwen2.gguf

The ggml-vocab files are in llama.cpp's models/ folder. For llama3 and qwen2 the vocabulary is also written as a
tokenizer.json and read back by tokenizer_open_hf. Exit status 1 when a difference is not one of the known ones:

 - sentencepiece and llama.cpp cut a run of more than 31 spaces from the left, transformers by its merges;
 - llama.cpp does not take a U+2581 in the text for a space inside runs of them;
 - transformers drops the space prefix where text begins with a space, and after special tokens;
 - llama.cpp does not normalize (Qwen: NFC), so it is given normalized strings.
"""
import argparse
import os
import sys
import tempfile
import unicodedata

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "text"))
import oracles
import text_strings

NAMES = {
    "spm": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<table>", "[multimodal]", "</b>", "<mask>", "\t\t"],
    "spm-prefix": ["<s>", "</s>", "<unk>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|reserved_special_token_222|>"],
    "qwen2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "[PAD151907]"],
}
failed = False


def compare(what, strings, ours, theirs, known=lambda s: False):
    global failed
    different = [(s, a, b) for s, a, b in zip(strings, ours, theirs) if a != b]
    surprises = [d for d in different if not known(d[0])]
    failed = failed or bool(surprises)
    print("  %-44s %6d strings, %5d equal, %4d known differences, %d surprises" % (
        what, len(strings), len(strings) - len(different), len(different) - len(surprises), len(surprises)))
    for s, a, b in surprises[:5]:
        print("      %r\n        ours   %s\n        theirs %s" % (s[:200], a[:40], b[:40]))


def check(kind, gguf, tool, llama):
    strings = text_strings.make_strings()
    special = text_strings.make_special(NAMES[kind])
    print("%s (%s)" % (os.path.basename(gguf), kind))

    def ours(model, strings, flags):
        return oracles.run([tool, model, str(flags)], [s.encode() for s in strings])

    plain, plain_special, parsed = (ours(gguf, s, f) for s, f in ((strings, 0), (special, 0), (special, 3)))
    if kind == "qwen2":
        normal = [unicodedata.normalize("NFC", s) for s in strings]
        compare("llama.cpp on NFC, special off", strings, plain, oracles.llama_cpp(llama, gguf, normal, 0, 0))
    else:
        compare("llama.cpp, special off", strings, plain, oracles.llama_cpp(llama, gguf, strings, 0, 0), lambda s: "\u2581" in s)
    compare("llama.cpp, special off, their names", special, plain_special, oracles.llama_cpp(llama, gguf, special, 0, 0))
    compare("llama.cpp, special on", special, parsed, oracles.llama_cpp(llama, gguf, special, 1, 1))

    hf = oracles.transformers_of(gguf, nfc=kind == "qwen2")
    prefix = kind == "spm-prefix"

    def known(s):
        return (" " * 32 in s.replace("\u2581", " ") and kind == "spm") or (prefix and s[:1] in (" ", "\u2581"))

    compare("transformers, special off", strings, plain, oracles.transformers_ids(hf, strings, 0, 0), known)
    compare("transformers, special off, their names", special, plain_special, oracles.transformers_ids(hf, special, 0, 0), known)
    if kind == "spm":
        compare("transformers, special on", special, parsed, oracles.transformers_ids(hf, special, 1, 1))
    elif not prefix:
        compare("transformers, special on (no bos)", special, ours(gguf, special, 2), oracles.transformers_ids(hf, special, 1, 0))
    if kind.startswith("spm"):
        sp = oracles.sentencepiece_of(gguf, prefix)
        compare("sentencepiece", strings, plain, sp.encode(strings))
        compare("sentencepiece, names of special tokens", special, plain_special, sp.encode(special))
        return
    with tempfile.TemporaryDirectory() as folder:
        hf.backend_tokenizer.encode_special_tokens = False
        hf.backend_tokenizer.save(os.path.join(folder, "tokenizer.json"))
        compare("transformers, our tokenizer.json reader", strings, ours(folder, strings, 0), oracles.transformers_ids(hf, strings, 0, 0))
        compare("the same, special on", special, ours(folder, special, 3), oracles.transformers_ids(hf, special, 1, 1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tool", required=True)
    p.add_argument("--llama", required=True)
    p.add_argument("vocabs", nargs="+", metavar="KIND:FILE")
    args = p.parse_args()
    for v in args.vocabs:
        kind, _, gguf = v.partition(":")
        check(kind, gguf, args.tool, args.llama)
    sys.exit(1 if failed else 0)


main()
