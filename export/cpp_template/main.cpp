// An example written by holocron-export --cpp: it is yours to change.
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <holocron/runtime.hpp>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef HAVE_OPENCV
#include <opencv2/imgcodecs.hpp>
#endif

namespace {

struct Image {
    int width = 0;
    int height = 0;
    holocron::Format format = holocron::Format::RGB;
    std::vector<std::uint8_t> pixels;

    holocron::Frame frame() const { return {pixels.data(), width, height, 0, format}; }
};

#ifdef HAVE_OPENCV

Image read_image(const std::string& path) {
    const cv::Mat picture = cv::imread(path, cv::IMREAD_COLOR);
    if (picture.empty()) {
        throw std::runtime_error("cannot read " + path);
    }
    const cv::Mat packed = picture.isContinuous() ? picture : picture.clone();
    return {packed.cols, packed.rows, holocron::Format::BGR, {packed.datastart, packed.dataend}};
}

#else

Image read_image(const std::string& path) {
    constexpr int kMostPixels = 32768;
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    Image image;
    int largest = 0;
    file >> magic >> image.width >> image.height >> largest;
    if (!file || magic != "P6" || largest != 255 || image.width < 1 || image.height < 1 || image.width > kMostPixels ||
        image.height > kMostPixels) {
        throw std::runtime_error(path + " is no binary PPM file: build the example with OpenCV to read others");
    }
    file.get();  // the white space before the pixels
    image.pixels.resize(std::size_t{3} * static_cast<std::size_t>(image.width) *
                        static_cast<std::size_t>(image.height));
    file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!file) {
        throw std::runtime_error(path + " is cut off");
    }
    return image;
}

#endif

@PRINT@
}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " BUNDLE IMAGE\n";
        return 2;
    }
    try {
        const auto model = holocron::load(argv[1]);  // best backend and artefact on this machine
        const Image image = read_image(argv[2]);
        print(model.@METHOD@(image.frame()));
        return EXIT_SUCCESS;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
