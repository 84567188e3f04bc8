// Times the network of a bundle and prints what holocron-bench --json prints, for one precision on one backend:
// holocron_example_benchmark BUNDLE [--precision P] [--backend B] [--device D] [--batch N] [--threads N]
//     [--iterations N] [--warmup N]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <holocron/runtime.hpp>
#include <iostream>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace {

struct Arguments {
    std::string bundle;
    holocron::LoadOptions options;
    int batch = 1;
    int iterations = 100;
    int warmup = 10;
};

int number(const std::string& name, const std::string& text, int lowest) {
    std::size_t used = 0;
    int value = 0;
    try {
        value = std::stoi(text, &used);
    } catch (const std::logic_error&) {
        used = 0;
    }
    if (used == 0 || used != text.size() || value < lowest) {
        throw std::runtime_error(name + " is " + text + ", expected an integer, " + std::to_string(lowest) +
                                 " at least");
    }
    return value;
}

Arguments parsed(int argc, char** argv) {
    Arguments arguments;
    arguments.bundle = argv[1];
    for (int i = 2; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) {
            throw std::runtime_error(name + " needs a value");
        }
        const std::string value = argv[i + 1];
        if (name == "--precision") {
            arguments.options.precision = value;
        } else if (name == "--backend") {
            arguments.options.backend = value;
        } else if (name == "--device") {
            arguments.options.device = value;
        } else if (name == "--batch") {
            arguments.batch = number(name, value, 1);
        } else if (name == "--threads") {
            arguments.options.threads = number(name, value, 1);
        } else if (name == "--iterations") {
            arguments.iterations = number(name, value, 1);
        } else if (name == "--warmup") {
            arguments.warmup = number(name, value, 0);
        } else {
            throw std::runtime_error("there is no option " + name);
        }
    }
    return arguments;
}

// Height and width of the frames to time with: those that the network says, or of its own input where it takes any.
holocron::Size frame_size(const holocron::Model& model) {
    const auto& input = model.inputs().front();
    holocron::Size size = model.input_size();
    if (input.name == "frame" && input.shape.size() == 4) {
        const auto* height = std::get_if<std::int64_t>(&input.shape[1]);
        const auto* width = std::get_if<std::int64_t>(&input.shape[2]);
        if (height != nullptr && width != nullptr) {
            size = {static_cast<int>(*height), static_cast<int>(*width)};
        }
    }
    return size;
}

// Inputs of noise, the same every time.
holocron::Tensors example_inputs(const holocron::Model& model, int batch) {
    const holocron::Size size = frame_size(model);
    std::mt19937 generator(0);
    std::vector<std::uint8_t> pixels(3 * static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width));
    std::generate(pixels.begin(), pixels.end(), [&] { return static_cast<std::uint8_t>(generator() >> 24); });
    const holocron::Frame frame{pixels.data(), size.width, size.height};
    return model.feeds(std::vector<holocron::Frame>(static_cast<std::size_t>(batch), frame));
}

// Interpolated between the two nearest of sorted values, as numpy does.
double percentile(const std::vector<double>& sorted, double percent) {
    const double place = percent / 100.0 * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (sorted[above] - sorted[below]) * (place - std::floor(place));
}

// Largest resident memory that this process has had, in MiB; 0 where the system does not say.
double peak_memory_mib() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
        if (word == "VmHWM:") {
            double kib = 0;
            status >> kib;
            return kib / 1024.0;
        }
    }
    return 0.0;
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        out += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
    }
    return out + '"';
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0]
                  << " BUNDLE [--precision P] [--backend B] [--device D] [--batch N] [--threads N] [--iterations N] "
                     "[--warmup N]\n";
        return 2;
    }
    try {
        const Arguments arguments = parsed(argc, argv);
        const auto model = holocron::load(arguments.bundle, arguments.options);
        const holocron::Tensors inputs = example_inputs(model, arguments.batch);
        holocron::TensorViews views;
        for (const auto& [name, tensor] : inputs) {
            views.emplace(name, tensor.view());
        }
        std::vector<double> milliseconds;
        for (int i = -arguments.warmup; i < arguments.iterations; ++i) {
            const auto start = std::chrono::steady_clock::now();
            const auto outputs = model.run(views);
            const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
            if (i >= 0) {
                milliseconds.push_back(took.count());
            }
        }
        const double seconds = std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / 1e3;
        std::sort(milliseconds.begin(), milliseconds.end());
        std::cout << "[\n  {\n"
                  << "    \"precision\": " << quoted(model.precision()) << ",\n"
                  << "    \"backend\": " << quoted(model.backend()) << ",\n"
                  << "    \"device\": " << quoted(model.device()) << ",\n"
                  << "    \"threads\": " << model.threads() << ",\n"
                  << "    \"batch\": " << arguments.batch << ",\n"
                  << "    \"iterations\": " << arguments.iterations << ",\n"
                  << "    \"p50_ms\": " << percentile(milliseconds, 50) << ",\n"
                  << "    \"p90_ms\": " << percentile(milliseconds, 90) << ",\n"
                  << "    \"p99_ms\": " << percentile(milliseconds, 99) << ",\n"
                  << "    \"images_per_second\": " << arguments.batch * arguments.iterations / seconds << ",\n"
                  << "    \"peak_memory_mb\": " << peak_memory_mib() << "\n"
                  << "  }\n]\n";
        return EXIT_SUCCESS;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
