/// \file
/// Bundles on a real backend, used by several threads at once: for sanitizers and valgrind.
///
/// holocron_concurrent_use BACKEND PIXELS WIDTH HEIGHT THREADS ROUNDS BUNDLE PRECISION [BUNDLE PRECISION ...]
///
/// PIXELS is a file of raw RGB. Of each bundle the answers to frames of every format are noted, alone and as a batch;
/// then several threads must get the same from one model, while others open the bundle anew, and at last while it is
/// closed. Says how many answers were compared.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <holocron/runtime.hpp>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using holocron::Format;
using holocron::Frame;
using holocron::Model;

using Pixels = std::vector<std::uint8_t>;
/// An answer as numbers, all of them.
using Numbers = std::vector<double>;

constexpr int kMargin = 6;  // of the frame that has another around it, in pixels

/// Frames of one photograph in every format, and their memory.
class Photograph {
 public:
    Photograph(const Pixels& rgb, int width, int height) {
        const auto count = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
        add(rgb, width, height, Format::RGB);
        add(reordered(rgb, {2, 1, 0}), width, height, Format::BGR);
        add(reordered(rgb, {0, 1, 2, 0}), width, height, Format::RGBA);
        add(reordered(rgb, {2, 1, 0, 1}), width, height, Format::BGRA);
        add(reordered(rgb, {1}), width, height, Format::Gray);
        Pixels planes = reordered(rgb, {0});
        planes.resize(count + count / 2, 100);
        add(std::move(planes), width, height, Format::NV12);
        add_region(rgb, width, height);
    }

    [[nodiscard]] const std::vector<Frame>& frames() const noexcept { return frames_; }

 private:
    static Pixels reordered(const Pixels& rgb, const std::vector<std::size_t>& channels) {
        Pixels out;
        out.reserve(rgb.size() / 3 * channels.size());
        for (std::size_t i = 0; i + 3 <= rgb.size(); i += 3) {
            for (const std::size_t channel : channels) {
                out.push_back(rgb[i + channel]);
            }
        }
        return out;
    }

    void add(Pixels pixels, int width, int height, Format format) {
        memory_.push_back(std::move(pixels));
        frames_.push_back({memory_.back().data(), width, height, 0, format});
    }

    /// The same rows with a margin on all sides, which is left out as a region, and by the stride.
    void add_region(const Pixels& rgb, int width, int height) {
        const auto row = static_cast<std::size_t>(width) * 3;
        const auto stride = static_cast<std::size_t>(width + 2 * kMargin) * 3;
        Pixels large(stride * static_cast<std::size_t>(height + 2 * kMargin), 0xAA);
        for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y) {
            const auto from = rgb.begin() + static_cast<std::ptrdiff_t>(y * row);
            const auto to = large.begin() + static_cast<std::ptrdiff_t>((y + kMargin) * stride + 3 * kMargin);
            std::copy(from, from + static_cast<std::ptrdiff_t>(row), to);
        }
        add(std::move(large), width + 2 * kMargin, height + 2 * kMargin, Format::RGB);
        frames_.back().stride = static_cast<std::ptrdiff_t>(stride);
        frames_.back().region = holocron::Region{kMargin, kMargin, width, height};
    }

    std::vector<Pixels> memory_;  // whose vectors are moved as it grows, not their elements
    std::vector<Frame> frames_;
};

Numbers numbers_of(const holocron::Classification& answer) {
    Numbers numbers(answer.logits.begin(), answer.logits.end());
    for (const auto& each : answer.top(answer.size())) {
        numbers.push_back(each.index + each.score);
    }
    return numbers;
}

Numbers numbers_of(const holocron::Detections& answer) {
    Numbers numbers{static_cast<double>(answer.status)};
    for (const auto& each : answer) {
        const auto& box = each.box;
        numbers.insert(numbers.end(), {box.xmin, box.ymin, box.xmax, box.ymax, each.score, double(each.index)});
    }
    return numbers;
}

Numbers numbers_of(const holocron::Segmentation& answer) {
    const auto pixels = answer.resized();
    Numbers numbers(pixels.classes.begin(), pixels.classes.end());
    numbers.insert(numbers.end(), answer.probabilities.begin(), answer.probabilities.end());
    for (const auto& each : answer.regions()) {
        numbers.push_back(each.index + each.share);
    }
    return numbers;
}

Numbers numbers_of(const holocron::Tensors& outputs) {
    Numbers numbers;
    for (const auto& [name, tensor] : outputs) {
        const auto* bytes = static_cast<const std::uint8_t*>(tensor.data());
        numbers.insert(numbers.end(), bytes, bytes + tensor.byte_count());
    }
    return numbers;
}

template <typename Answer>
std::vector<Numbers> each_of(const std::vector<Answer>& answers) {
    std::vector<Numbers> all;
    for (const auto& answer : answers) {
        all.push_back(numbers_of(answer));
    }
    return all;
}

Numbers answer(const Model& model, const Frame& frame) {
    switch (model.task()) {
        case holocron::Task::Classification:
            return numbers_of(model.classify(frame));
        case holocron::Task::Detection:
            return numbers_of(model.detect(frame));
        case holocron::Task::Segmentation:
            break;
    }
    return numbers_of(model.segment(frame));
}

std::vector<Numbers> answers(const Model& model, const std::vector<Frame>& frames) {
    switch (model.task()) {
        case holocron::Task::Classification:
            return each_of(model.classify(frames));
        case holocron::Task::Detection:
            return each_of(model.detect(frames));
        case holocron::Task::Segmentation:
            break;
    }
    return each_of(model.segment(frames));
}

/// What the network gives for tensors of the caller's.
Numbers outputs(const Model& model, const holocron::Tensors& feeds) {
    holocron::TensorViews views;
    for (const auto& [name, tensor] : feeds) {
        views.emplace(name, tensor.view());
    }
    return numbers_of(model.run(views));
}

/// Call a function in threads of its own, and throw what one of them did.
void in_threads(int count, const std::function<void(int)>& function) {
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(count));
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
        threads.emplace_back([&function, &error = errors[static_cast<std::size_t>(i)], i] {
            try {
                function(i);
            } catch (...) {
                error = std::current_exception();
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    for (const auto& error : errors) {
        if (error) {
            std::rethrow_exception(error);
        }
    }
}

/// What is asked of every bundle.
struct Plan {
    holocron::LoadOptions options;
    std::vector<Frame> frames;
    int threads = 0;
    int rounds = 0;
};

class Comparison {
 public:
    template <typename Value>
    void same(const Value& found, const Value& wanted, const char* what) {
        if (found != wanted) {
            throw std::runtime_error(std::string(what) + " of a thread is not the one that was given alone");
        }
        ++count_;
    }

    [[nodiscard]] int count() const noexcept { return count_; }

 private:
    std::atomic<int> count_{0};
};

void use(const Plan& plan, const std::string& bundle, Comparison& comparison) {
    const auto model = holocron::load(bundle, plan.options);
    std::vector<Numbers> wanted;
    for (const auto& frame : plan.frames) {
        wanted.push_back(answer(model, frame));
    }
    const auto wanted_batch = answers(model, plan.frames);
    const auto feeds = model.feeds(plan.frames);
    const auto wanted_outputs = outputs(model, feeds);
    in_threads(plan.threads, [&](int thread) {
        for (int round = 0; round < plan.rounds; ++round) {
            const auto i = static_cast<std::size_t>(thread + round) % plan.frames.size();
            comparison.same(answer(model, plan.frames[i]), wanted[i], "an answer");
            if (round % plan.threads == thread) {
                const auto anew = holocron::load(bundle, plan.options);
                comparison.same(answer(anew, plan.frames[i]), wanted[i], "a second model's answer");
            } else if (round % 2 == 0) {
                comparison.same(answers(model, plan.frames), wanted_batch, "a batch's answer");
            } else {
                comparison.same(outputs(model, feeds), wanted_outputs, "the network's output");
            }
        }
    });
    // At last one closes it under the others' feet.
    std::atomic<int> waited_for{plan.threads};
    in_threads(plan.threads, [&](int thread) {
        if (thread == 0) {
            while (waited_for > 0) {
                std::this_thread::yield();
            }
            model.close();
            return;
        }
        try {
            for (;;) {
                const auto i = static_cast<std::size_t>(thread) % plan.frames.size();
                comparison.same(answer(model, plan.frames[i]), wanted[i], "an answer before closing");
                --waited_for;
            }
        } catch (const std::exception& e) {
            waited_for = 0;
            if (std::string(e.what()).find("is closed") == std::string::npos) {
                throw;
            }
        }
    });
}

Pixels read_pixels(const std::string& path, std::size_t size) {
    std::ifstream file(path, std::ios::binary);
    Pixels pixels{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file || pixels.size() != size) {
        throw std::runtime_error(path + " does not have " + std::to_string(size) + " bytes");
    }
    return pixels;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 9 || argc % 2 == 0) {
        std::cerr << "usage: " << argv[0]
                  << " BACKEND PIXELS WIDTH HEIGHT THREADS ROUNDS BUNDLE PRECISION [BUNDLE PRECISION ...]\n";
        return 2;
    }
    try {
        const int width = std::stoi(argv[3]);
        const int height = std::stoi(argv[4]);
        const auto bytes = static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3;
        const Photograph photograph(read_pixels(argv[2], bytes), width, height);
        Plan plan;
        plan.options.backend = argv[1];
        plan.options.threads = 2;
        plan.options.concurrency = 2;
        plan.frames = photograph.frames();
        plan.threads = std::stoi(argv[5]);
        plan.rounds = std::stoi(argv[6]);
        Comparison comparison;
        for (int i = 7; i < argc; i += 2) {
            plan.options.precision = argv[i + 1];
            use(plan, argv[i], comparison);
        }
        std::cout << comparison.count() << " answers are the same\n";
        return EXIT_SUCCESS;
    } catch (const std::exception& e) {
        std::cerr << "error: " << e.what() << '\n';
        return EXIT_FAILURE;
    }
}
