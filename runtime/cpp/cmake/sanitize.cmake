# -DHOLOCRON_SANITIZE=address,undefined or thread: for the library, and for the tests and examples, which are in folders
# of their own. -DCMAKE_BUILD_TYPE=RelWithDebInfo names lines.
if(HOLOCRON_SANITIZE)
    set(flags -fsanitize=${HOLOCRON_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(holocron_objects PRIVATE ${flags})
    add_compile_options(${flags})
    add_link_options(${flags})
endif()
