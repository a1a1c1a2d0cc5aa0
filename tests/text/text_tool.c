/* text_tool.c - tokenizes strings for the comparison scripts: not a test.
 *
 *   text_tool MODEL FLAGS < strings > ids
 *
 * MODEL: a GGUF file or a folder with tokenizer.json. FLAGS: TOKENIZE_* as a number, or "decode": then the input
 * are lists of ids and the output strings. Everything is little-endian: a string is a u32 length and its bytes, a
 * list of ids a u32 count and that many i32.
 */
#include "tests/text/text_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *read_block(size_t item_bytes, uint32_t *n) {
    if (fread(n, 4, 1, stdin) != 1) return NULL;
    void *block = malloc(*n * item_bytes + 1);
    if (!block || fread(block, item_bytes, *n, stdin) != *n) exit(1);
    return block;
}

static void write_block(const void *items, size_t item_bytes, size_t n) {
    uint32_t count = (uint32_t)n;
    fwrite(&count, 4, 1, stdout);
    fwrite(items, item_bytes, n, stdout);
}

int main(int argc, char **argv) {
    struct err e;
    if (argc != 3) return 2;
    bool decode = strcmp(argv[2], "decode") == 0;
    struct tokenizer *t = text_test_open(argv[1], &e);
    if (!t) {
        fprintf(stderr, "%s\n", e.message);
        return 1;
    }
    uint32_t n;
    for (char *block; (block = read_block(decode ? 4 : 1, &n)) != NULL; free(block)) {
        int32_t *ids = NULL;
        size_t n_out = 0;
        if (decode) {
            char *text = tokenizer_decode(t, (int32_t *)block, n, false, &n_out);
            write_block(text, 1, n_out);
            free(text);
        } else {
            if (!tokenizer_encode(t, block, n, (unsigned)atoi(argv[2]), SIZE_MAX, &ids, &n_out, &e)) return 1;
            write_block(ids, 4, n_out);
        }
        free(ids);
    }
    tokenizer_close(t);
    return 0;
}
