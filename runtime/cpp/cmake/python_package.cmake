# The folder of a package of the Python that is found, the active environment's or -DPython3_EXECUTABLE=<python>, or
# nothing. Some wheels have what a C++ program is built with; nothing of Python gets into it.
function(holocron_python_package name result)
    set(folder "")
    find_package(Python3 QUIET COMPONENTS Interpreter)
    if(Python3_FOUND)
        execute_process(
            COMMAND ${Python3_EXECUTABLE} -c "from importlib.util import find_spec
spec = find_spec('${name}')
print(spec.submodule_search_locations[0] if spec else '', end='')"
            OUTPUT_VARIABLE folder ERROR_QUIET)
    endif()
    set(${result} "${folder}" PARENT_SCOPE)
endfunction()
