"""The layout check finds each kind of violation when it is planted, and accepts what is allowed."""

import tempfile
import unittest
from pathlib import Path

import layout

TREE = {  # a small tree without a violation
    "common/base.h": "#include <stdint.h>\n",
    "engine/kernels/kernels.h": '#include "common/base.h"\n',
    "engine/kernels/kernels_int.h": '#include "engine/kernels/kernels.h"\n',
    "engine/kernels/cpu/dot.c": '#include "engine/kernels/kernels_int.h"\n',
    "engine/text/text.h": "",
    "engine/kvcache/kvcache.h": '#include "common/base.h"\n',
    "engine/sampling/sampling.h": '#include "engine/kernels/kernels.h"\n',
    "engine/model/model.h": '#include "engine/sampling/sampling.h"\n',
    "engine/batching/batching.h": '#include "engine/kvcache/kvcache.h"\n',
    "engine/engine.h": '#include "engine/text/text.h"\n#include "engine/batching/batching.h"\n',
    "server/main.c": '#include "engine/engine.h"\n#include "engine/text/text.h"\n#include "server/http.h"\n',
    "server/http.h": '#include "common/base.h"\n',
    "router/router.h": "",
    "tests/kernels/dot_test.c": '#include "engine/kernels/kernels_int.h"\n',
}


class LayoutTest(unittest.TestCase):
    def check(self, changes):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**TREE, **changes}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return list(layout.violations(folder))

    def expect_one(self, name, text, part):
        found = self.check({name: text})
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(name + ":"), found)
        self.assertIn(part, found[0])

    def test_clean_tree_passes(self):
        self.assertEqual(self.check({}), [])

    def test_upward_include(self):
        self.expect_one("engine/kernels/cpu/up.c", '#include "engine/model/model.h"\n', "not below")
        self.expect_one("common/up.c", '  #  include "engine/text/text.h"\n', "not below")
        self.expect_one("engine/model/up.c", '#include "engine/engine.h"\n', "not below")

    def test_sideways_include(self):
        self.expect_one("engine/text/side.c", '#include "engine/kernels/kernels.h"\n', "not below")
        self.expect_one("engine/sampling/side.c", '#include "engine/kvcache/kvcache.h"\n', "not below")

    def test_programs_do_not_include_each_other(self):
        self.expect_one("server/side.c", '#include "router/router.h"\n', "not below")
        self.expect_one("router/side.c", '#include "server/http.h"\n', "not below")

    def test_batching_sees_only_kvcache(self):
        self.expect_one("engine/batching/b.c", '#include "engine/model/model.h"\n', "only")
        self.expect_one("engine/batching/b.c", '#include "engine/kernels/kernels.h"\n', "only")

    def test_server_sees_only_the_engines_face(self):
        self.expect_one("server/deep.c", '#include "engine/kvcache/kvcache.h"\n', "only")
        self.expect_one("server/deep.c", '#include "engine/sampling/sampling.h"\n', "only")
        self.expect_one("server/deep.c", '#include "engine/text/text_int.h"\n', "not a file")
        found = self.check({"server/deep.c": '#include "engine/text/bpe.h"\n', "engine/text/bpe.h": ""})
        self.assertEqual(len(found), 1, found)

    def test_private_headers_stay_private(self):
        self.expect_one("engine/sampling/s.c", '#include "engine/kernels/kernels_int.h"\n', "private")

    def test_nothing_includes_tests_or_bench(self):
        found = self.check({"server/t.c": '#include "tests/t.h"\n', "tests/t.h": ""})
        self.assertEqual(len(found), 1, found)

    def test_unknown_and_relative_includes(self):
        self.expect_one("server/a.c", '#include "nowhere.h"\n', "not a file")
        self.expect_one("server/a.c", '#include "http.h"\n', "from the root")

    def test_long_file(self):
        self.expect_one("server/long.c", "\n" * 1001, "lines")
        self.assertEqual(self.check({"server/long.c": "\n" * 1000}), [])

    def test_libraries_that_nobody_installs(self):
        self.expect_one("CMakeLists.txt", "pkg_check_modules(A REQUIRED IMPORTED_TARGET liba)\n", "liba")
        deps = {"scripts/install-deps": "liba-dev | pkg-config --exists liba\n"}
        self.assertEqual(self.check({**deps, "CMakeLists.txt": "pkg_check_modules(A REQUIRED IMPORTED_TARGET liba)\n"}), [])

    def test_machine_names(self):
        self.expect_one("docs/a.md", "see /root/x for it\n", "machine")
        self.expect_one("scripts/run", "cd /work/main\n", "machine")
        self.expect_one("scripts/run", "cat /opt/things/model.gguf\n", "machine")
        self.expect_one("docs/a.md", "curl http://10.1.2.3:8000\n", "address")
        self.expect_one("docs/a.md", "ssh build7.internal\n", "host")
        allowed = "~/.cache/choir $HOME/x /tmp/x 127.0.0.1 0.0.0.0 example.com x.internal() ../shared tests/work/x\n"
        self.assertEqual(self.check({"docs/b.md": allowed}), [])


if __name__ == "__main__":
    unittest.main()
