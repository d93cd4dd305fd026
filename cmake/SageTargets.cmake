# Target helpers: one static library a folder, instruction-set flags by file name, one test binary a module.

# tier_avx2.cc and tier_avx512.cc are compiled for that instruction set and only called after a cpuid check. Nothing else is:
# a library template instantiated there could be linked into code that runs on any machine. With one region for registers GCC 12 spills no
# sum of a tile of five rows.
function(sage_set_isa_flags)
  foreach(file IN LISTS ARGN)
    if(file MATCHES "/tier_[a-z0-9]+\\.cc$")
      set_source_files_properties(${file} PROPERTIES SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      if(file MATCHES "/tier_avx2\\.cc$")
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mbmi2")
      elseif(file MATCHES "/tier_avx512\\.cc$")
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS
          "-mavx2;-mfma;-mf16c;-mbmi2;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mprefer-vector-width=512;-Wno-uninitialized;-Wno-maybe-uninitialized;$<$<CXX_COMPILER_ID:GNU>:-fira-region=one>")
      endif()
    endif()
  endforeach()
endfunction()

# sage_library(name FOLDER dir [TOGETHER n] [EXTRA files] DEPS targets...): every .cc (and .cu with SAGE_CUDA) of the
# folder, n of them in one translation unit: small files that each read the same headers cost little more together than
# one. What their unnamed namespaces hold must then have different names, which plug-ins' do not.
function(sage_library name)
  cmake_parse_arguments(ARG "" "FOLDER;TOGETHER" "EXTRA;DEPS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${ARG_FOLDER}/*.cc")
  if(SAGE_CUDA)
    file(GLOB cuda_sources CONFIGURE_DEPENDS "${ARG_FOLDER}/*.cu")
    list(APPEND sources ${cuda_sources})
  endif()
  list(APPEND sources ${ARG_EXTRA})
  if(NOT sources)
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${CMAKE_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
    return()
  endif()
  sage_set_isa_flags(${sources})
  add_library(${name} STATIC ${sources})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  sage_precompile(sage_precompiled_engine ${name})
  if(ARG_TOGETHER)
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${ARG_TOGETHER})
    # GCC takes a file that is included for a header.
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
  endif()
endfunction()

# sage_test(module FOLDER dir DEPS targets...): one binary <module>_test from every *_test.cc of tests/unit/<dir>.
function(sage_test module)
  cmake_parse_arguments(ARG "" "FOLDER" "DEPS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${ARG_FOLDER}/*_test.cc")
  if(NOT sources)
    return()
  endif()
  add_executable(${module}_test ${sources})
  target_link_libraries(${module}_test PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${module}_test PRIVATE SAGE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${module}_test PRIVATE -Wno-array-bounds)  # false alarms over std::string, as with -Wrestrict
  endif()
  # A third less to compile; only the emulated kernels run long enough to want more.
  if(NOT module STREQUAL "backend_cuda")
    target_compile_options(${module}_test PRIVATE $<$<CONFIG:Release>:-O1>)
  endif()
  sage_precompile(sage_precompiled_tests ${module}_test)
  add_test(NAME ${module} COMMAND ${module}_test)
  set_tests_properties(${module} PROPERTIES TIMEOUT 900)
endfunction()
