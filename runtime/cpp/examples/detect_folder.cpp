// Finds objects in the images of a folder, and writes the images with boxes around them:
// holocron_example_detect_folder BUNDLE FOLDER OUTPUT
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <holocron/runtime.hpp>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "image_file.hpp"

namespace {

using Colour = std::array<std::uint8_t, 3>;

constexpr std::array<Colour, 8> kColours{{{230, 25, 75},
                                          {60, 180, 75},
                                          {255, 225, 25},
                                          {0, 130, 200},
                                          {245, 130, 48},
                                          {145, 30, 180},
                                          {70, 240, 240},
                                          {240, 50, 230}}};

std::vector<std::filesystem::path> images_of(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.is_regular_file() && is_image(entry.path())) {
            paths.push_back(entry.path());
        }
    }
    if (paths.empty()) {
        throw std::runtime_error(folder.string() + " has no images");
    }
    std::sort(paths.begin(), paths.end());
    return paths;
}

// The same pixels as RGB, to draw on.
Image canvas_of(const Image& image) {
    const std::size_t count = static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height);
    const std::size_t channels = image.pixels.size() / count;
    Image canvas{image.width, image.height, holocron::Format::RGB, std::vector<std::uint8_t>(3 * count)};
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t c = 0; c < 3; ++c) {
            canvas.pixels[3 * i + c] = image.pixels[channels * i + (channels == 1 ? 0 : c)];
        }
    }
    return canvas;
}

void fill(Image& canvas, int left, int top, int right, int bottom, const Colour& colour) {
    for (int y = std::max(top, 0); y < std::min(bottom, canvas.height); ++y) {
        for (int x = std::max(left, 0); x < std::min(right, canvas.width); ++x) {
            const std::size_t at = 3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(canvas.width) +
                                        static_cast<std::size_t>(x));
            std::copy(colour.begin(), colour.end(), canvas.pixels.begin() + static_cast<std::ptrdiff_t>(at));
        }
    }
}

void draw(Image& canvas, const holocron::Detection& object) {
    const Colour& colour = kColours[static_cast<std::size_t>(object.index) % kColours.size()];
    const int line = std::max(1, std::max(canvas.width, canvas.height) / 300);
    const int left = static_cast<int>(std::lround(object.box.xmin));
    const int top = static_cast<int>(std::lround(object.box.ymin));
    const int right = static_cast<int>(std::lround(object.box.xmax));
    const int bottom = static_cast<int>(std::lround(object.box.ymax));
    fill(canvas, left, top, right, top + line, colour);
    fill(canvas, left, bottom - line, right, bottom, colour);
    fill(canvas, left, top, left + line, bottom, colour);
    fill(canvas, right - line, top, right, bottom, colour);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: " << argv[0] << " BUNDLE FOLDER OUTPUT\n";
        return 2;
    }
    try {
        const auto model = holocron::load(argv[1]);
        const std::filesystem::path output = argv[3];
        std::filesystem::create_directories(output);
        for (const auto& path : images_of(argv[2])) {
            const Image image = read_image(path);
            const auto found = model.detect(image.frame());
            Image canvas = canvas_of(image);
            // The most certain object is drawn last, on top.
            for (std::size_t i = found.size(); i-- > 0;) {
                draw(canvas, found[i]);
            }
            std::cout << path.filename().string() << ": " << found.size() << " objects, "
                      << write_image(output / path.stem(), canvas).string() << '\n';
            for (std::size_t i = 0; i < found.size(); ++i) {
                const auto& box = found[i].box;
                std::cout << "  " << found[i].score << ' ' << found.label(i) << " (" << box.xmin << ", " << box.ymin
                          << ") to (" << box.xmax << ", " << box.ymax << ")\n";
            }
            for (const auto& remark : found.remarks()) {
                std::cerr << path.string() << ": " << remark << '\n';
            }
        }
        return EXIT_SUCCESS;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
