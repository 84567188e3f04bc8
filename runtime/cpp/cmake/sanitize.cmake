# -DHOLOCRON_SANITIZE=address,undefined or thread: for the tests, which are linked with the objects.
# -DCMAKE_BUILD_TYPE=RelWithDebInfo names lines.
if(HOLOCRON_SANITIZE)
    set(flags -fsanitize=${HOLOCRON_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(holocron_objects PUBLIC ${flags})
    target_link_options(holocron_objects PUBLIC ${flags})
    list(APPEND HOLOCRON_PRIVATE_LIBRARIES ${flags})
endif()
