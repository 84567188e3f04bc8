// Runs a model on a camera, a video or a sequence of images, captured by OpenCV:
// holocron_example_camera BUNDLE [SOURCE] [FRAMES]
//
// SOURCE is a GStreamer pipeline that ends in appsink, a file, a pattern of files such as frame_%03d.jpg, or the number
// of a camera. By default it is the CSI camera of a Jetson, whose image processor scales and converts. FRAMES is how
// many to take; by default all that come.
#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <exception>
#include <holocron/runtime.hpp>
#include <iostream>
#include <opencv2/core.hpp>
#include <opencv2/videoio.hpp>
#include <stdexcept>
#include <string>

namespace {

// drop and max-buffers: a model slower than the camera sees the latest frame, not an ever older one.
constexpr const char* kJetsonCamera =
    "nvarguscamerasrc ! video/x-raw(memory:NVMM), width=1280, height=720, framerate=30/1 ! nvvidconv ! "
    "video/x-raw, format=BGRx ! videoconvert ! video/x-raw, format=BGR ! appsink drop=true max-buffers=1 sync=false";

cv::VideoCapture opened(const std::string& source) {
    cv::VideoCapture capture;
    if (source.find("appsink") != std::string::npos) {
        capture.open(source, cv::CAP_GSTREAMER);
    } else if (!source.empty() && source.find_first_not_of("0123456789") == std::string::npos) {
        capture.open(std::stoi(source));
    } else {
        capture.open(source);
    }
    if (!capture.isOpened()) {
        throw std::runtime_error("cannot open " + source);
    }
    return capture;
}

// No pixel is copied: the frame points into OpenCV's image.
holocron::Frame frame_of(const cv::Mat& image) {
    const auto format = image.channels() == 1   ? holocron::Format::Gray
                        : image.channels() == 4 ? holocron::Format::BGRA
                                                : holocron::Format::BGR;
    return {image.data, image.cols, image.rows, static_cast<std::ptrdiff_t>(image.step[0]), format};
}

std::string answer(const holocron::Model& model, const holocron::Frame& frame) {
    std::string text;
    switch (model.task()) {
        case holocron::Task::Classification: {
            const auto result = model.classify(frame);
            text = result.label() + ' ' + std::to_string(result.score());
            break;
        }
        case holocron::Task::Detection: {
            const auto found = model.detect(frame);
            text = std::to_string(found.size()) + " objects";
            for (std::size_t i = 0; i < std::min<std::size_t>(found.size(), 5); ++i) {
                text += (i == 0 ? ": " : ", ") + found.label(i);
            }
            break;
        }
        case holocron::Task::Segmentation:
            for (const auto& region : model.segment(frame).regions(5)) {
                text += (text.empty() ? "" : ", ") + region.label + ' ' + std::to_string(region.share);
            }
            break;
    }
    return text;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::cerr << "usage: " << argv[0] << " BUNDLE [SOURCE] [FRAMES]\n";
        return 2;
    }
    try {
        const auto model = holocron::load(argv[1]);
        model.warm_up();  // before the camera runs: the first frames do not wait
        auto capture = opened(argc > 2 ? argv[2] : kJetsonCamera);
        const int wanted = argc > 3 ? std::stoi(argv[3]) : INT_MAX;
        cv::Mat image;
        int count = 0;
        double milliseconds = 0;
        for (; count < wanted && capture.read(image) && !image.empty(); ++count) {
            const auto start = std::chrono::steady_clock::now();
            const std::string text = answer(model, frame_of(image));
            const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
            milliseconds += took.count();
            std::cout << count << ": " << text << '\n';
        }
        std::cerr << count << " frames, " << milliseconds / std::max(count, 1) << " ms each in " << model.precision()
                  << " on " << model.backend() << '\n';
        return EXIT_SUCCESS;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
