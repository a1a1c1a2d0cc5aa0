# choir_fuzz(name SOURCES files... LIBS libs... CORPUS folders...): a target with LLVMFuzzerTestOneInput, run by ctest
# (label fuzz) through tests/fuzz_main.c: the corpus, then CHOIR_FUZZ_SECONDS (3) of mutants.
# For a long run guided by coverage: configure a folder with -DCHOIR_SANITIZE=address,undefined, configure it again with
# -DCMAKE_C_FLAGS="-O1 -fsanitize-coverage=trace-pc" (CMake's own trial programs do not link with that), build the
# target and run it with CHOIR_FUZZ_SECONDS set.
function(choir_fuzz name)
  cmake_parse_arguments(T "" "" "SOURCES;LIBS;CORPUS" ${ARGN})
  add_executable(${name} ${T_SOURCES} ${CMAKE_SOURCE_DIR}/tests/fuzz_main.c)
  target_link_libraries(${name} PRIVATE ${T_LIBS})
  target_compile_options(${name} PRIVATE -Wno-conversion)
  add_test(NAME ${name} COMMAND ${name} ${T_CORPUS})
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 300 WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
                       ENVIRONMENT CHOIR_FUZZ_OUT=${CMAKE_BINARY_DIR})
endfunction()
