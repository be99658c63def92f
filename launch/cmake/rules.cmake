# How every folder is built: one static library, warnings, fixed floating-point rules.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_C_FLAGS_RELEASE "-O3")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g")

add_library(shoal_rules INTERFACE)
target_include_directories(shoal_rules INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(shoal_rules INTERFACE _GNU_SOURCE SHOAL_VERSION="${PROJECT_VERSION}")
target_compile_options(
    shoal_rules
    INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wvla -Wno-unknown-pragmas
              # Bits must not depend on the compiler: no contraction, and fma only where written.
              -ffp-contract=off -fno-math-errno -fno-trapping-math)
if(SHOAL_WITH_CUDA)
    target_compile_definitions(shoal_rules INTERFACE SHOAL_WITH_CUDA=1)
endif()
if(SHOAL_WERROR)
    target_compile_options(shoal_rules INTERFACE -Werror)
endif()
if(SHOAL_SANITIZE)
    # Undefined behaviour ends the program: a message alone fails no test.
    target_compile_options(shoal_rules INTERFACE -fsanitize=address,undefined -fno-omit-frame-pointer
                                                 -fno-sanitize-recover=undefined)
    target_link_options(shoal_rules INTERFACE -fsanitize=address,undefined)
endif()
target_link_libraries(shoal_rules INTERFACE Threads::Threads m)

# shoal_folder(NAME SOURCES... [LINKS targets...] [ISA kernel sources...] [CUDA .cu and .c files...])
# ISA sources are compiled three times, with SHOAL_ISA = scalar, avx2 and avx512; each names its
# symbols with ISA_NAME(x) from runtime/base/isa.h.
# CUDA sources are compiled in builds with CUDA only; C code asks SHOAL_WITH_CUDA.
function(shoal_folder name)
    cmake_parse_arguments(arg "" "" "SOURCES;LINKS;ISA;CUDA" ${ARGN})
    add_library(shoal_${name} STATIC ${arg_SOURCES})
    target_link_libraries(shoal_${name} PUBLIC shoal_rules ${arg_LINKS})
    set_property(GLOBAL APPEND PROPERTY SHOAL_FOLDERS shoal_${name})
    set(flags_scalar "")
    set(flags_avx2 -mavx2 -mfma -mf16c -mtune=haswell)
    set(flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
                     -mprefer-vector-width=512)
    foreach(isa scalar avx2 avx512)
        if(arg_ISA)
            add_library(shoal_${name}_${isa} OBJECT ${arg_ISA})
            target_link_libraries(shoal_${name}_${isa} PRIVATE shoal_rules ${arg_LINKS})
            target_compile_definitions(shoal_${name}_${isa} PRIVATE SHOAL_ISA=${isa})
            target_compile_options(shoal_${name}_${isa} PRIVATE ${flags_${isa}})
            target_sources(shoal_${name} PRIVATE $<TARGET_OBJECTS:shoal_${name}_${isa}>)
        endif()
    endforeach()
    if(arg_CUDA AND SHOAL_WITH_CUDA)
        set(hosted ${arg_CUDA})
        list(FILTER hosted EXCLUDE REGEX "\\.cu$")
        target_sources(shoal_${name} PRIVATE ${hosted})
        target_link_libraries(shoal_${name} PUBLIC shoal_cuda)
        set(kernels ${arg_CUDA})
        list(FILTER kernels INCLUDE REGEX "\\.cu$")
        if(kernels)
            add_library(shoal_${name}_cuda OBJECT ${kernels})
            target_link_libraries(shoal_${name}_cuda PRIVATE shoal_cuda_rules)
            target_sources(shoal_${name} PRIVATE $<TARGET_OBJECTS:shoal_${name}_cuda>)
        endif()
        set_target_properties(shoal_${name} PROPERTIES LINKER_LANGUAGE C)
    endif()
endfunction()

# shoal_test(NAME SOURCES... LINKS folders... [TIMEOUT seconds]): a Criterion binary, one ctest entry,
# which may take SHOAL_TEST_PATIENCE times as long.  One whose name holds the word gpu or cudnn gets
# ctest's label gpu in builds with CUDA.
function(shoal_test name)
    cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;LINKS" ${ARGN})
    add_executable(test_${name} ${arg_SOURCES})
    target_link_libraries(test_${name} PRIVATE ${arg_LINKS} PkgConfig::CRITERION)
    target_compile_definitions(test_${name} PRIVATE SHOAL_BUILD_DIR="${CMAKE_BINARY_DIR}"
                                                    SHOAL_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_compile_options(test_${name} PRIVATE -Wno-missing-field-initializers)
    set_target_properties(test_${name} PROPERTIES LINKER_LANGUAGE C)
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 300)
    endif()
    if(SHOAL_SANITIZE)
        math(EXPR arg_TIMEOUT "4 * ${arg_TIMEOUT}")
    endif()
    if(SHOAL_TEST_PATIENCE)
        math(EXPR arg_TIMEOUT "${SHOAL_TEST_PATIENCE} * ${arg_TIMEOUT}")
    endif()
    add_test(NAME ${name} COMMAND test_${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT})
    if(SHOAL_WITH_CUDA AND name MATCHES "(^|_)(gpu|cudnn)(_|$)")
        set_tests_properties(${name} PROPERTIES LABELS gpu)
        shoal_gpu_needs(test_${name})
    endif()
endfunction()

# shoal_gpu_needs(TARGETS...): built by the target gpu_tests, for tests/gpu/run.
function(shoal_gpu_needs)
    if(NOT TARGET gpu_tests)
        add_custom_target(gpu_tests)
    endif()
    add_dependencies(gpu_tests ${ARGN})
endfunction()

# shoal_worker(NAME SOURCES... LINKS folders...): a plain program for mpirun (0 pass, 1 fail, 77 skip).
function(shoal_worker name)
    cmake_parse_arguments(arg "" "" "SOURCES;LINKS" ${ARGN})
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE ${arg_LINKS})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/world
                                             LINKER_LANGUAGE C)
endfunction()
