"""The text that test_metrics --dump writes is what Prometheus reads: checked by the official parser where it is
installed (pip install prometheus_client), and always by a strict reader of the format's grammar here."""

import re
import subprocess
import sys
import unittest

TEXT = subprocess.run([sys.argv.pop(1), "--dump"], capture_output=True, check=True).stdout.decode("utf-8")
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9.e+-]+|NaN|[+-]Inf)")

MODEL = 'model_name="a \\"quoted\\\\\\" name\\n"'
EXPECTED = {
    f'choir_requests_total{{{MODEL},route="/v1/chat",status="200"}} 3.5',
    f'vllm:requests_total{{{MODEL},route="/v1/chat",status="200"}} 3.5',
    f'choir_requests_total{{{MODEL},route="\ufffd\\n\\"\\\\,}}",status="é"}} 1e+20',
    f"choir_running{{{MODEL}}} -3.0",
    f"vllm:num_requests_running{{{MODEL}}} -3.0",
    f'choir_ttft_seconds_bucket{{{MODEL},le="0.005"}} 1',
    f'choir_ttft_seconds_bucket{{{MODEL},le="0.01"}} 2',
    f'choir_ttft_seconds_bucket{{{MODEL},le="10"}} 2',
    f'choir_ttft_seconds_bucket{{{MODEL},le="+Inf"}} 3',
    f"choir_ttft_seconds_count{{{MODEL}}} 3",
    f'vllm:size_bucket{{{MODEL},kind="x",le="1"}} 1',
    f"choir_untouched_total{{{MODEL}}} 0",
}


class Text(unittest.TestCase):
    def test_expected_lines(self):
        self.assertEqual(EXPECTED - set(TEXT.split("\n")), set())

    def test_grammar(self):
        self.assertTrue(TEXT.endswith("\n"))
        typed, helped, seen = {}, set(), set()
        for line in TEXT.split("\n")[:-1]:
            if line.startswith("# HELP "):
                name = line.split(" ")[2]
                self.assertNotIn(name, helped, "one HELP per name")
                helped.add(name)
                self.assertRegex(line.split(" ", 3)[3], r"^(?:[^\\]|\\\\|\\n)+$")
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                self.assertIn(kind, ("counter", "gauge", "histogram"))
                self.assertNotIn(name, typed, "one TYPE per name")
                typed[name] = kind
                current = name
            else:
                match = SAMPLE.fullmatch(line)
                self.assertTrue(match, line)
                base = match[1]
                if typed.get(current) == "histogram":
                    base = re.sub("_(bucket|sum|count)$", "", base)
                self.assertEqual(base, current, "samples stand below their TYPE")
                self.assertNotIn((match[1], match[2]), seen, "one value per series")
                seen.add((match[1], match[2]))
        self.assertEqual(set(typed), helped)

    def test_official_parser(self):
        try:
            from prometheus_client.parser import text_string_to_metric_families
        except ImportError:
            self.skipTest("prometheus_client is not installed")
        families = {f.name: f for f in text_string_to_metric_families(TEXT)}
        self.assertEqual(families["choir_requests"].type, "counter")
        self.assertEqual(families["choir_ttft_seconds"].type, "histogram")
        self.assertEqual(families["vllm:num_requests_running"].samples[0].value, -3)
        label = families["choir_running"].samples[0].labels["model_name"]
        self.assertEqual(label, 'a "quoted\\" name\n')
        buckets = [s.value for s in families["choir_ttft_seconds"].samples if s.name.endswith("_bucket")]
        self.assertEqual(buckets, [1, 2, 2, 2, 2, 3])


if __name__ == "__main__":
    unittest.main(verbosity=2)
