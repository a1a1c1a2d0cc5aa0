/* text_test.h - what the tests of engine/text share. */
#ifndef TESTS_TEXT_TEXT_TEST_H
#define TESTS_TEXT_TEXT_TEST_H

#include "engine/text/text.h"

/* Opens the tokenizer of a GGUF file or of a folder. */
struct tokenizer *text_test_open(const char *path, struct err *e);

#endif
