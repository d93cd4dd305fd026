# Precompiled headers: the standard library, Abseil and nlohmann-json are three quarters of what a small file compiles.
#
# sage_precompile(target...) lets targets reuse one header compiled once; a target that was built with other code
# generation (-fPIE of programs) takes the second one. Sources still include what they use: the tsan preset builds without.
option(SAGE_PRECOMPILE "Precompile the headers that nearly every source includes" ON)

set(sage_precompiled_engine
  <algorithm> <cmath> <condition_variable> <cstdint> <cstring> <filesystem> <functional> <map> <memory> <mutex> <optional> <string>
  <string_view> <thread> <utility> <vector> <absl/status/statusor.h> <absl/strings/str_cat.h> <absl/strings/str_join.h>
  <absl/types/span.h> <nlohmann/json.hpp>)

# sage_precompiled_header(name HEADERS ... DEPS ... [PIE]): an object library that compiles nothing but its header.
function(sage_precompiled_header name)
  cmake_parse_arguments(ARG "PIE" "" "HEADERS;DEPS" ${ARGN})
  set(source ${CMAKE_BINARY_DIR}/${name}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "// Nothing: a target needs a source to precompile headers for.\n")
  add_library(${name} OBJECT ${source})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  if(ARG_PIE)
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE -fPIE)
  endif()
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
endfunction()

function(sage_precompile header)
  if(NOT SAGE_PRECOMPILE)
    return()
  endif()
  foreach(target IN LISTS ARGN)
    target_precompile_headers(${target} REUSE_FROM ${header})
  endforeach()
endfunction()
