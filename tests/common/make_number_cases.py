"""Writes number_cases.h: how Python prints doubles, and numpy floats, in their shortest form (the oracle of test_strbuf).

    python3 make_number_cases.py > number_cases.h      (needs numpy)
"""

import random
import struct

import numpy

random.seed(1)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 0.2, 0.3, 1 / 3, 1e15, 1e16, 1e17, 123456789012345680.0, 1e-4, 1e-5, 5e-324, 1.7976931348623157e308,
           2.2250738585072014e-308, 9007199254740993.0, 0.30000000000000004, 100.0, 1e21, 1e22, 1e23, -2.5, 65504.0]


def double(bits):
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


doubles = SPECIAL + [double(random.getrandbits(64)) for _ in range(150)] + [random.uniform(-30, 0) for _ in range(50)]
floats = [numpy.float32(v) for v in SPECIAL if abs(v) < 3e38] + [numpy.uint32(random.getrandbits(32)).view(numpy.float32) for _ in range(150)]
floats += [numpy.float32(random.uniform(-30, 0)) for _ in range(50)]

print("/* number_cases.h - made by make_number_cases.py: bits, and the shortest decimal that reads back as them. */")
print("static const struct {\n    uint64_t bits;\n    const char *text;\n} double_cases[] = {")
for v in doubles:
    if v == v and abs(v) != float("inf"):
        print(f'    {{0x{struct.unpack("<Q", struct.pack("<d", v))[0]:016x}u, "{v!r}"}},')
print("};\nstatic const struct {\n    uint32_t bits;\n    const char *text;\n} float_cases[] = {")
for v in floats:
    if numpy.isfinite(v):
        print(f'    {{0x{v.view(numpy.uint32):08x}u, "{str(v)}"}},')
print("};")
