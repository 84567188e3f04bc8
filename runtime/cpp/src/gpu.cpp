#include "gpu.hpp"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <vector>

#include "holocron/errors.hpp"
#include "text.hpp"

namespace holocron::detail {

int gpu_index(const std::string& device, int count) {
    constexpr std::string_view kPrefix = "cuda:";
    constexpr std::size_t kMostDigits = 4;
    std::string text = device.empty() ? "0" : device;
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (text == "cuda") {
        text = "0";
    } else if (text.rfind(kPrefix, 0) == 0) {
        text.erase(0, kPrefix.size());
    }
    if (count == 0) {
        throw BackendError("there is no NVIDIA GPU here");
    }
    const bool is_number =
        !text.empty() && text.size() <= kMostDigits && text.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number || std::stoi(text) >= count) {
        std::vector<std::string> known;
        for (int i = 0; i < count; ++i) {
            known.push_back("cuda:" + std::to_string(i));
        }
        throw BackendError("there is no device " + repr(device) + ": expected one of " + joined(known));
    }
    return std::stoi(text);
}

}  // namespace holocron::detail
