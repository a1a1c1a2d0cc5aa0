# Flags of every target. The floating-point ones are part of the exactness contract: no contraction, no
# reassociation, no libm shortcuts; instruction sets are chosen per function and at run time, never by -march.
add_compile_options(-ffp-contract=off -fno-fast-math -fno-strict-overflow -fno-delete-null-pointer-checks)
add_compile_options(-Wall -Wextra -Wformat=2 -Werror=format-security -Wvla -Wshadow
                    "$<$<COMPILE_LANGUAGE:C>:-Wconversion;-Wno-sign-conversion;-Wstrict-prototypes;-Wmissing-prototypes>")
option(CHOIR_WERROR "Warnings are errors (CI)" OFF)
if(CHOIR_WERROR)
  add_compile_options(-Werror)
endif()

add_compile_options(-fstack-protector-strong -fstack-clash-protection -fcf-protection=full -fPIE)
add_link_options(-pie -Wl,-z,relro,-z,now,-z,noexecstack)
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  add_compile_options(-O2 -g1 -D_FORTIFY_SOURCE=2)
endif()

set(CHOIR_SANITIZE "" CACHE STRING "address,undefined or thread")
if(CHOIR_SANITIZE)
  add_compile_options(-fsanitize=${CHOIR_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${CHOIR_SANITIZE})
endif()
option(CHOIR_COVERAGE "gcov instrumentation" OFF)
if(CHOIR_COVERAGE)
  add_compile_options(--coverage)
  add_link_options(--coverage)
endif()
add_compile_definitions(_GNU_SOURCE CHOIR_VERSION="${PROJECT_VERSION}")
include_directories(${CMAKE_SOURCE_DIR})
