# SHOAL_CUDA: AUTO builds the CUDA parts when nvcc, cuBLASLt, cuDNN and NCCL are found, ON
# demands them, OFF does without.  Sets SHOAL_WITH_CUDA and the target shoal_cuda.

set(SHOAL_CUDA AUTO CACHE STRING "Build the CUDA parts: AUTO, ON or OFF")
set_property(CACHE SHOAL_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT SHOAL_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "SHOAL_CUDA: ${SHOAL_CUDA}, expected AUTO, ON or OFF")
endif()

set(SHOAL_WITH_CUDA OFF)
set(shoal_cuda_text "off")
set(shoal_cuda_oldest 12.4)
set(shoal_cudnn_oldest 9.10.2)

# cuBLASLt, cuDNN and NCCL may come with Python: nvidia/cudnn/{include,lib}, nvidia/nccl/..., whose
# libraries have no development links.  Such folders, of the python3 on the PATH, go behind all others.
function(shoal_python_roots roots_out)
    set(roots "")
    find_program(SHOAL_PYTHON python3)
    mark_as_advanced(SHOAL_PYTHON)
    if(SHOAL_PYTHON)
        execute_process(COMMAND ${SHOAL_PYTHON} -c "import nvidia; print(*nvidia.__path__, sep=';', end='')"
                        OUTPUT_VARIABLE packages ERROR_QUIET)
        foreach(package ${packages})
            file(GLOB folders LIST_DIRECTORIES true ${package}/*)
            list(APPEND roots ${folders})
        endforeach()
    endif()
    set(${roots_out} ${roots} PARENT_SCOPE)
endfunction()

# Finds everything; names what is missing in shoal_cuda_missing.
macro(shoal_find_cuda)
    set(shoal_cuda_missing "")
    set(shoal_cuda_version 0)
    set(roots $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda)
    find_program(SHOAL_NVCC nvcc HINTS ENV CUDACXX ${roots} PATHS ${roots} PATH_SUFFIXES bin)
    if(SHOAL_NVCC)
        execute_process(COMMAND ${SHOAL_NVCC} --version OUTPUT_VARIABLE text ERROR_QUIET)
        if(text MATCHES "release ([0-9]+\\.[0-9]+)")
            set(shoal_cuda_version ${CMAKE_MATCH_1})
        endif()
        get_filename_component(nvcc_folder ${SHOAL_NVCC} REALPATH)
        get_filename_component(nvcc_folder ${nvcc_folder} DIRECTORY)
        list(PREPEND roots ${nvcc_folder}/..)
    endif()
    if(shoal_cuda_version VERSION_LESS shoal_cuda_oldest)
        list(APPEND shoal_cuda_missing "nvcc ${shoal_cuda_oldest} or newer")
    endif()
    shoal_python_roots(python_roots)
    find_path(SHOAL_CUDA_INCLUDE cuda_runtime_api.h HINTS ${roots}
              PATHS ${python_roots} PATH_SUFFIXES include)
    find_path(SHOAL_CUBLASLT_INCLUDE cublasLt.h HINTS ${roots}
              PATHS ${python_roots} PATH_SUFFIXES include)
    find_path(SHOAL_CUDNN_INCLUDE cudnn_backend.h HINTS ${roots}
              PATHS ${python_roots} PATH_SUFFIXES include)
    find_path(SHOAL_NCCL_INCLUDE nccl.h HINTS ${roots}
              PATHS ${python_roots} PATH_SUFFIXES include)
    foreach(row "CUDART;cudart;13;12" "CUBLASLT;cublasLt;13;12" "CUDNN;cudnn;9" "NCCL;nccl;2")
        list(GET row 0 prefix)
        list(GET row 1 library)
        list(SUBLIST row 2 -1 versions)
        list(TRANSFORM versions REPLACE "(.+)" "lib${library}.so.\\1")
        # By folder, not by name: headers and library of one installation.
        find_library(SHOAL_${prefix}_LIBRARY NAMES ${library} ${versions} NAMES_PER_DIR HINTS ${roots}
                     PATHS ${python_roots} PATH_SUFFIXES lib64 lib)
        if(NOT SHOAL_${prefix}_LIBRARY)
            list(APPEND shoal_cuda_missing "${library}")
        endif()
        mark_as_advanced(SHOAL_${prefix}_LIBRARY)
    endforeach()
    if(NOT SHOAL_CUDA_INCLUDE OR NOT SHOAL_CUBLASLT_INCLUDE OR NOT SHOAL_CUDNN_INCLUDE
       OR NOT SHOAL_NCCL_INCLUDE)
        list(APPEND shoal_cuda_missing
             "headers (cuda_runtime_api.h, cublasLt.h, cudnn_backend.h, nccl.h)")
    elseif(EXISTS ${SHOAL_CUDNN_INCLUDE}/cudnn_version.h)
        file(STRINGS ${SHOAL_CUDNN_INCLUDE}/cudnn_version.h text
             REGEX "define CUDNN_(MAJOR|MINOR|PATCHLEVEL) ")
        string(REGEX REPLACE "[^0-9;]" "" text "${text}")
        string(REPLACE ";" "." text "${text}")
        if(text VERSION_LESS shoal_cudnn_oldest)
            list(APPEND shoal_cuda_missing "cuDNN ${shoal_cudnn_oldest} or newer (found ${text})")
        endif()
    endif()
    mark_as_advanced(SHOAL_NVCC SHOAL_CUDA_INCLUDE SHOAL_CUBLASLT_INCLUDE SHOAL_CUDNN_INCLUDE
                     SHOAL_NCCL_INCLUDE)
endmacro()

if(NOT SHOAL_CUDA STREQUAL "OFF")
    shoal_find_cuda()
    if(NOT shoal_cuda_missing)
        set(SHOAL_WITH_CUDA ON)
    else()
        list(JOIN shoal_cuda_missing ", " shoal_cuda_missing)
        set(shoal_cuda_text "off (not found: ${shoal_cuda_missing})")
        if(SHOAL_CUDA STREQUAL "ON")
            message(FATAL_ERROR "SHOAL_CUDA=ON, but not found: ${shoal_cuda_missing}.\n"
                                "Install them, set CUDA_HOME, or configure with SHOAL_CUDA=OFF")
        endif()
    endif()
endif()

if(SHOAL_WITH_CUDA)
    # One device program per generation that has kernels of its own, and PTX for those to come.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
    endif()
    set(CMAKE_CUDA_COMPILER ${SHOAL_NVCC})
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
    if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
        find_program(SHOAL_CUDA_HOST_COMPILER NAMES g++-12 g++)
        mark_as_advanced(SHOAL_CUDA_HOST_COMPILER)
        if(SHOAL_CUDA_HOST_COMPILER)
            set(CMAKE_CUDA_HOST_COMPILER ${SHOAL_CUDA_HOST_COMPILER})
        endif()
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
    set(CMAKE_CUDA_FLAGS_DEBUG "-O1 -g -lineinfo")

    add_library(shoal_cuda INTERFACE)
    target_include_directories(
        shoal_cuda SYSTEM INTERFACE ${SHOAL_CUDA_INCLUDE} ${SHOAL_CUBLASLT_INCLUDE}
                                    ${SHOAL_CUDNN_INCLUDE} ${SHOAL_NCCL_INCLUDE})
    target_link_libraries(shoal_cuda INTERFACE ${SHOAL_CUDART_LIBRARY} ${SHOAL_CUBLASLT_LIBRARY}
                                               ${SHOAL_CUDNN_LIBRARY} ${SHOAL_NCCL_LIBRARY} stdc++)
    # The libraries are hundreds of megabytes: only programs that call them load them.
    target_link_options(shoal_cuda INTERFACE -Wl,--as-needed)

    # Kernels round as the CPU does: no contraction, IEEE division and square root, no flush to zero.
    add_library(shoal_cuda_rules INTERFACE)
    target_include_directories(shoal_cuda_rules INTERFACE ${PROJECT_SOURCE_DIR})
    target_compile_options(
        shoal_cuda_rules
        INTERFACE -fmad=false -prec-div=true -prec-sqrt=true -ftz=false
                  -Xcompiler=-Wall,-Wextra,-ffp-contract=off,-fvisibility=hidden
                  $<$<BOOL:${SHOAL_WERROR}>:-Werror=all-warnings>)
    target_link_libraries(shoal_cuda_rules INTERFACE shoal_cuda)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " shoal_cuda_text)
    set(shoal_cuda_text "${shoal_cuda_version}  (${shoal_cuda_text})  NCCL ${SHOAL_NCCL_LIBRARY}")
endif()
