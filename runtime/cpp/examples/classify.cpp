// Classifies image files: holocron_example_classify BUNDLE IMAGE ...
#include <cstdlib>
#include <exception>
#include <holocron/runtime.hpp>
#include <iostream>

#include "image_file.hpp"

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: " << argv[0] << " BUNDLE IMAGE ...\n";
        return 2;
    }
    try {
        const auto model = holocron::load(argv[1]);  // best backend and artefact on this machine
        std::cerr << model.name() << " in " << model.precision() << " on " << model.backend() << ", " << model.device()
                  << '\n';
        for (int i = 2; i < argc; ++i) {
            const Image image = read_image(argv[i]);
            const auto result = model.classify(image.frame());
            std::cout << argv[i] << '\n';
            for (const auto& each : result.top(5)) {
                std::cout << "  " << each.score << ' ' << each.label << '\n';
            }
        }
        return EXIT_SUCCESS;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
