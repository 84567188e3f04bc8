# -DHOLOCRON_SANITIZE=address,undefined or thread: for the tests; everything of ours is compiled with it.
if(HOLOCRON_SANITIZE)
    set(flags -fsanitize=${HOLOCRON_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
    target_compile_options(holocron_objects PUBLIC ${flags})
    target_link_options(holocron_objects PUBLIC ${flags})
    list(APPEND HOLOCRON_PRIVATE_LIBRARIES ${flags})
endif()
