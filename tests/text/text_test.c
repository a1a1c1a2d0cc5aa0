#include "tests/text/text_test.h"

#include "engine/model/tensor_file.h"

#include <sys/stat.h>

struct tokenizer *text_test_open(const char *path, struct err *e) {
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return tokenizer_open_hf(path, e);
    struct tensor_file *f = tensor_file_open(path, e);
    if (!f) return NULL;
    struct tokenizer *t = tensor_file_tokenizer(f, e);
    tensor_file_close(f);
    return t;
}
