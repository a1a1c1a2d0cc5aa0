"""The exactness contract over HTTP, with the real model: an answer is a function of (model, request, seed) alone.

usage: exact_test.py CHOIRD    (the model's file in CHOIR_TEST_MODEL; skipped with status 77 without it)

Compared bit for bit are token ids, log-probabilities of the tokens and of the five best, text and finish reason. The
reference is every request asked alone, on one thread, of a replica without prefix cache; every other way must equal it.
Requests are of many lengths (some past the model's sliding window and the splits of attention), greedy and sampled.
"""

import os
import random
import re
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/lib"))

from replica import Replica  # noqa: E402

MODEL = os.environ.get("CHOIR_TEST_MODEL")
N_REQUESTS = 16
N_OUT = 24
# Characters of prompt: around four to a token. The window of the default model is 512 tokens.
LENGTHS = [1, 20, 60, 125, 128, 131, 200, 260, 400, 520, 700, 900, 1100, 1500, 2600, 3300]
TIGHT_KV_MEMORY = "16M"  # some 900 tokens


def make_requests():
    text = (ROOT / "LICENSE").read_text()
    rng = random.Random(11)
    requests = []
    for i, length in enumerate(LENGTHS):
        begin = rng.randrange(len(text) - length)
        request = {"prompt": text[begin:begin + length], "max_tokens": N_OUT, "ignore_eos": True, "temperature": 0}
        if i % 2:
            request |= {"temperature": 1, "seed": 1000 + i}
        if i % 8 == 3:
            request |= {"top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
        requests.append(request)
    return requests


REQUESTS = make_requests()
REFERENCE = []


def replica(**options):
    return Replica(CHOIRD, MODEL, **{"max_model_len": 2048, **options})


class ExactTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with replica(threads=1, prefix_cache=False) as alone:
            REFERENCE[:] = [alone.ask(r)[0] for r in REQUESTS]
        cls.main = replica(threads=2)

    @classmethod
    def tearDownClass(cls):
        if cls.main.stop() != 0:
            raise RuntimeError("choird did not stop cleanly:\n" + "".join(cls.main.log[-20:]))

    def compare(self, answers, which=None):
        for i, answer in zip(which or range(len(answers)), answers):
            expected = REFERENCE[i]
            self.assertEqual(len(answer.token_ids), N_OUT)
            self.assertEqual(len(answer.rows), N_OUT)
            self.assertEqual(answer.token_ids, expected.token_ids, f"tokens of request {i}")
            self.assertEqual(answer.rows, expected.rows, f"log-probabilities of request {i}")
            self.assertEqual(answer.content(), expected.content(), f"request {i}")

    def crowd(self, server, order_seed, **how):
        """All requests at once, handed in in a random order."""
        order = list(range(N_REQUESTS))
        random.Random(order_seed).shuffle(order)
        self.compare(server.ask_all([REQUESTS[i] for i in order], **how), order)

    def test_references_differ_from_each_other(self):
        self.assertEqual(len({a.fingerprint() for a in REFERENCE}), N_REQUESTS)

    def test_logprobs_are_written_in_full(self):
        """Half of all fp32 values need at least eight digits: with fewer, equal decimals would prove nothing."""
        texts = re.findall(r'"token_logprobs":\[([^]]*)\]', self.main.ask_text(REQUESTS[0]))[0].split(",")
        digits = [len(t.split("e")[0].replace(".", "").lstrip("-0")) for t in texts]
        self.assertEqual(len(digits), N_OUT)
        self.assertGreaterEqual(sorted(digits)[N_OUT // 2], 7)
        self.assertGreaterEqual(max(digits), 8)

    def test_alone_on_two_threads(self):
        self.compare([self.main.ask(r)[0] for r in REQUESTS])

    def test_among_15_others(self):
        for seed in range(2):
            self.crowd(self.main, seed)

    def test_streamed(self):
        self.compare([self.main.ask(r, stream=True)[0] for r in REQUESTS[:6]])
        self.crowd(self.main, 5, stream=True)

    def test_prefix_hit(self):
        longest = len(REQUESTS) - 1
        first = self.main.ask(REQUESTS[longest], salt="warm")[0]
        again = self.main.ask(REQUESTS[longest], salt="warm")[0]
        self.assertEqual(first.cached_tokens, 0)
        self.assertGreater(again.cached_tokens, 300)
        self.compare([first, again], [longest, longest])
        self.crowd(self.main, 6, salt="crowd")
        hits = self.main.metric("choir_prefix_cache_hits_total")
        self.crowd(self.main, 7, salt="crowd")
        self.assertGreater(self.main.metric("choir_prefix_cache_hits_total"), hits)

    def test_salts_do_not_share(self):
        self.main.ask(REQUESTS[-1], salt="one")
        other = self.main.ask(REQUESTS[-1], salt="two")[0]
        self.assertEqual(other.cached_tokens, 0)
        self.compare([other], [len(REQUESTS) - 1])

    def test_choices_equal_requests_with_their_seeds(self):
        request = {**REQUESTS[7], "seed": 77}
        alone = [self.main.ask({**request, "seed": 77 + i})[0].content() for i in range(3)]
        together = [a.content() for a in self.main.ask({**request, "n": 3})]
        self.assertEqual(together, alone)
        self.assertNotEqual(alone[0], alone[1])

    def test_prompt_logprobs_in_a_crowd(self):
        request = {**REQUESTS[11], "prompt_logprobs": 3}
        alone = self.main.ask(request)[0]
        self.assertGreater(len(alone.prompt_rows), 100)
        crowd = self.main.ask_all([request] + REQUESTS, salt="prompt")
        again = self.main.ask(request, salt="prompt")[0]
        self.assertEqual(crowd[0].content(), alone.content())
        self.assertEqual(again.content(), alone.content())
        self.compare(crowd[1:])

    def test_a_thousand_steps_later(self):
        before = self.main.metric("choir_steps_total")
        self.main.ask({"prompt": "Once upon a time", "max_tokens": 1010, "temperature": 1, "seed": 3, "ignore_eos": True})
        self.assertGreaterEqual(self.main.metric("choir_steps_total") - before, 1000)
        self.crowd(self.main, 8)

    def test_smallest_chunks(self):
        with replica(threads=2, max_batch_tokens=16, max_seqs=16) as small:
            self.compare([small.ask(r)[0] for r in REQUESTS[-3:]], range(N_REQUESTS - 3, N_REQUESTS))
            self.crowd(small, 9)

    def test_odd_chunks_on_one_thread(self):
        with replica(threads=1, max_batch_tokens=37, max_seqs=5) as odd:
            self.crowd(odd, 10)
            self.crowd(odd, 11, stream=True, salt="odd")

    def test_preempted(self):
        """Short prompts that are admitted together and then outgrow the KV memory."""
        requests = [{**r, "prompt": r["prompt"][-150:], "max_tokens": 100} for r in REQUESTS]
        expected = [self.main.ask(r)[0].content() for r in requests]
        with replica(threads=2, kv_memory=TIGHT_KV_MEMORY, max_model_len=256) as tight:
            for how in ({}, {"stream": True}):
                before = tight.metric("choir_preemptions_total")
                self.assertEqual([a.content() for a in tight.ask_all(requests, **how)], expected)
                self.assertGreater(tight.metric("choir_preemptions_total"), before, "nothing was preempted: this shows nothing")

    def test_other_instruction_sets(self):
        with replica(threads=2, isa="avx2") as avx2:
            self.crowd(avx2, 13)
        few = range(1, 3)
        with replica(threads=2, isa="scalar", max_batch_tokens=16) as scalar:
            self.compare(scalar.ask_all([REQUESTS[i] for i in few]), few)


if __name__ == "__main__":
    CHOIRD = sys.argv.pop(1)
    if not MODEL:
        print("CHOIR_TEST_MODEL is not set: skipped")
        sys.exit(77)
    unittest.main(verbosity=2)
