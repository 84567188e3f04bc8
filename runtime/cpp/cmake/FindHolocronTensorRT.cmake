# TensorRT 10.3 or later, or TensorRT-RTX, and the CUDA runtime: whichever of the two the headers that are found are of.
#
# Looked for where Debian's packages put them (JetPack has them), in /usr/local/cuda, and below
#   TensorRT_ROOT     folder with include/ and lib/ of TensorRT or TensorRT-RTX
#   CUDAToolkit_ROOT  folder with include/ and lib/ of CUDA
# as CMake or environment variables. Sets HolocronTensorRT_FOUND, _FLAVOUR (tensorrt or tensorrt_rtx), _VERSION, _REASON
# where it is not found, and the target Holocron::TensorRT.
set(tensorrt_hints ${TensorRT_ROOT} $ENV{TensorRT_ROOT})
set(cuda_hints ${CUDAToolkit_ROOT} $ENV{CUDAToolkit_ROOT} $ENV{CUDA_HOME} /usr/local/cuda)

find_path(HolocronTensorRT_INCLUDE_DIR NvInferRuntime.h HINTS ${tensorrt_hints} PATH_SUFFIXES include)
find_path(HolocronTensorRT_PARSER_INCLUDE_DIR NvOnnxParser.h HINTS ${tensorrt_hints} PATH_SUFFIXES include)
find_path(HolocronTensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${cuda_hints}
    PATH_SUFFIXES include targets/aarch64-linux/include targets/sbsa-linux/include targets/x86_64-linux/include)

set(HolocronTensorRT_FLAVOUR tensorrt)
set(HolocronTensorRT_VERSION "")
if(HolocronTensorRT_INCLUDE_DIR AND EXISTS ${HolocronTensorRT_INCLUDE_DIR}/NvInferVersion.h)
    file(STRINGS ${HolocronTensorRT_INCLUDE_DIR}/NvInferVersion.h version_lines
        REGEX "#define (NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(_RTX|_ENTERPRISE)? +[0-9]+")
    if("${version_lines}" MATCHES "TRT_MAJOR_RTX")
        set(HolocronTensorRT_FLAVOUR tensorrt_rtx)
    endif()
    set(numbers "")
    foreach(part MAJOR MINOR PATCH)
        if("${version_lines}" MATCHES "_${part}(_RTX|_ENTERPRISE)? +([0-9]+)")
            list(APPEND numbers ${CMAKE_MATCH_2})
        endif()
    endforeach()
    list(JOIN numbers "." HolocronTensorRT_VERSION)
endif()

# A Python package has its libraries without the link that the linker looks for.
if(HolocronTensorRT_FLAVOUR STREQUAL "tensorrt_rtx")
    set(library_names tensorrt_rtx libtensorrt_rtx.so.1)
    set(parser_names tensorrt_onnxparser_rtx libtensorrt_onnxparser_rtx.so.1)
else()
    set(library_names nvinfer)
    set(parser_names nvonnxparser)
endif()
find_library(HolocronTensorRT_LIBRARY NAMES ${library_names} HINTS ${tensorrt_hints} PATH_SUFFIXES lib lib64)
find_library(HolocronTensorRT_PARSER_LIBRARY NAMES ${parser_names} HINTS ${tensorrt_hints} PATH_SUFFIXES lib lib64)
find_library(HolocronTensorRT_CUDA_LIBRARY NAMES cudart libcudart.so.13 libcudart.so.12 HINTS ${cuda_hints}
    PATH_SUFFIXES lib lib64 targets/aarch64-linux/lib targets/sbsa-linux/lib targets/x86_64-linux/lib)
mark_as_advanced(HolocronTensorRT_INCLUDE_DIR HolocronTensorRT_PARSER_INCLUDE_DIR HolocronTensorRT_CUDA_INCLUDE_DIR
    HolocronTensorRT_LIBRARY HolocronTensorRT_PARSER_LIBRARY HolocronTensorRT_CUDA_LIBRARY)

set(missing "")
foreach(part INCLUDE_DIR:NvInferRuntime.h PARSER_INCLUDE_DIR:NvOnnxParser.h CUDA_INCLUDE_DIR:cuda_runtime_api.h
        LIBRARY:its_library PARSER_LIBRARY:its_ONNX_parser CUDA_LIBRARY:cudart)
    string(REPLACE ":" ";" part ${part})
    list(GET part 0 variable)
    list(GET part 1 what)
    if(NOT HolocronTensorRT_${variable})
        list(APPEND missing ${what})
    endif()
endforeach()

set(HolocronTensorRT_FOUND FALSE)
if(missing)
    list(GET missing 0 first_missing)
    set(HolocronTensorRT_REASON "${first_missing} not found")
elseif(HolocronTensorRT_FLAVOUR STREQUAL "tensorrt" AND HolocronTensorRT_VERSION VERSION_LESS 10.3)
    set(HolocronTensorRT_REASON "TensorRT ${HolocronTensorRT_VERSION} is too old: 10.3 or later is needed")
elseif(HolocronTensorRT_FLAVOUR STREQUAL "tensorrt_rtx" AND HolocronTensorRT_VERSION VERSION_LESS 1.2)
    set(HolocronTensorRT_REASON "TensorRT-RTX ${HolocronTensorRT_VERSION} is too old: 1.2 or later is needed")
else()
    set(HolocronTensorRT_FOUND TRUE)
    if(NOT TARGET Holocron::TensorRT)
        add_library(Holocron::TensorRT INTERFACE IMPORTED)
        target_include_directories(Holocron::TensorRT SYSTEM INTERFACE ${HolocronTensorRT_INCLUDE_DIR}
            ${HolocronTensorRT_PARSER_INCLUDE_DIR} ${HolocronTensorRT_CUDA_INCLUDE_DIR})
        target_link_libraries(Holocron::TensorRT INTERFACE ${HolocronTensorRT_LIBRARY}
            ${HolocronTensorRT_PARSER_LIBRARY} ${HolocronTensorRT_CUDA_LIBRARY})
    endif()
endif()
