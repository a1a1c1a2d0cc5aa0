#!/usr/bin/env python3
"""Writes unicode_ranges.inc: which code points are letters (L*) and which are numbers (N*).

The pre-tokenizers need these two properties. They are committed as data, so that the tokens of a text do not
depend on which Unicode version the machine's libraries were built with. The version is that of the `tokenizers`
package (Oniguruma): Unicode 16.

    pip install unicodedata2==16.0.0
    python3 make_unicode_ranges.py > unicode_ranges.inc
"""
import unicodedata2


def ranges(letter):
    found = []
    for c in range(0x110000):
        if unicodedata2.category(chr(c))[0] != letter:
            continue
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return found


def main():
    assert unicodedata2.unidata_version == "16.0.0"
    print("/* Made by make_unicode_ranges.py from Unicode %s. First and last code point of each range. */"
          % unicodedata2.unidata_version)
    print("/* clang-format off */")
    for name, letter in (("letter_ranges", "L"), ("number_ranges", "N")):
        items = ["{0x%x,0x%x}" % tuple(r) for r in ranges(letter)]
        print("static const struct range %s[] = {" % name)
        line = "   "
        for item in items:
            if len(line) + len(item) + 2 > 120:
                print(line)
                line = "   "
            line += " " + item + ","
        print(line)
        print("};")
    print("/* clang-format on */")


main()
