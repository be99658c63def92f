# Required libraries; a missing one is named with its Debian package.

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

set(shoal_missing "")

find_package(MPI COMPONENTS C QUIET)
if(NOT MPI_C_FOUND)
    list(APPEND shoal_missing "MPICH (libmpich-dev mpich)")
endif()

# The serial, thread-safe build: an MPI build of HDF5 is not thread-safe and not wanted here.
pkg_check_modules(HDF5 QUIET IMPORTED_TARGET hdf5-serial)
if(NOT HDF5_FOUND)
    list(APPEND shoal_missing "HDF5, serial (libhdf5-dev)")
endif()

foreach(row "FYAML;libfyaml;libfyaml-dev" "JANSSON;jansson;libjansson-dev"
            "ISAL;libisal;libisal-dev" "XXHASH;libxxhash;libxxhash-dev"
            "URING;liburing;liburing-dev")
    list(GET row 0 prefix)
    list(GET row 1 module)
    list(GET row 2 package)
    pkg_check_modules(${prefix} QUIET IMPORTED_TARGET ${module})
    if(NOT ${prefix}_FOUND)
        list(APPEND shoal_missing "${module} (${package})")
    endif()
endforeach()

find_path(DNNL_INCLUDE_DIR dnnl.h)
find_library(DNNL_LIBRARY dnnl)
if(NOT DNNL_INCLUDE_DIR OR NOT DNNL_LIBRARY)
    list(APPEND shoal_missing "oneDNN (libdnnl-dev)")
endif()
find_package(OpenMP COMPONENTS C QUIET) # only to set oneDNN's thread count to one

if(SHOAL_TESTS)
    pkg_check_modules(CRITERION QUIET IMPORTED_TARGET criterion)
    if(NOT CRITERION_FOUND)
        list(APPEND shoal_missing "Criterion (libcriterion-dev)")
    endif()
endif()

if(shoal_missing)
    list(JOIN shoal_missing "\n  " shoal_missing_text)
    message(FATAL_ERROR "Missing libraries (Debian packages in brackets):\n  ${shoal_missing_text}\n"
                        "Install them with: ./launch/install-deps")
endif()

add_library(shoal_dnnl INTERFACE)
target_include_directories(shoal_dnnl INTERFACE ${DNNL_INCLUDE_DIR})
target_link_libraries(shoal_dnnl INTERFACE ${DNNL_LIBRARY})
