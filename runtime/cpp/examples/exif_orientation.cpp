#include "exif_orientation.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

namespace {

constexpr int kUpright = 1;

// Bytes that are read with a check of their end; behind it they are 0.
class Bytes {
 public:
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] unsigned at(std::size_t i) const { return i < size_ ? data_[i] : 0U; }
    [[nodiscard]] unsigned two(std::size_t i, bool big_end_first) const {
        return big_end_first ? at(i) << 8 | at(i + 1) : at(i + 1) << 8 | at(i);
    }
    [[nodiscard]] std::size_t four(std::size_t i, bool big_end_first) const {
        const std::size_t first = two(i, big_end_first);
        const std::size_t second = two(i + 2, big_end_first);
        return big_end_first ? first << 16 | second : second << 16 | first;
    }
    [[nodiscard]] bool begins_with(const char* text, std::size_t length) const {
        return length <= size_ && std::memcmp(data_, text, length) == 0;
    }
    [[nodiscard]] Bytes part(std::size_t begin, std::size_t length) const {
        begin = std::min(begin, size_);
        return {data_ + begin, std::min(length, size_ - begin)};
    }

 private:
    const std::uint8_t* data_;
    std::size_t size_;
};

// The tag of the first directory of a TIFF header.
int tiff_orientation(const Bytes& tiff) {
    constexpr unsigned tag = 0x0112;
    const bool big_end_first = tiff.at(0) == 'M';
    const std::size_t directory = tiff.four(4, big_end_first);
    const unsigned entries = tiff.two(directory, big_end_first);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + 12 * i;
        if (entry + 12 > tiff.size()) {
            break;
        }
        if (tiff.two(entry, big_end_first) == tag) {
            const unsigned value = tiff.two(entry + 8, big_end_first);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : kUpright;
        }
    }
    return kUpright;
}

}  // namespace

int exif_orientation(const std::vector<std::uint8_t>& jpeg) {
    constexpr unsigned app1 = 0xE1;
    constexpr unsigned start_of_scan = 0xDA;
    constexpr char exif[] = {'E', 'x', 'i', 'f', 0, 0};
    const Bytes file(jpeg.data(), jpeg.size());
    // Segments: FF, what it is, two bytes of length that count themselves, and what belongs to it.
    for (std::size_t at = 2; at + 4 <= file.size() && file.at(at) == 0xFF;) {
        const unsigned kind = file.at(at + 1);
        const std::size_t length = file.two(at + 2, true);
        if (kind == start_of_scan || length < 2) {
            break;
        }
        const Bytes segment = file.part(at + 4, length - 2);
        if (kind == app1 && segment.begins_with(exif, sizeof exif)) {
            return tiff_orientation(segment.part(sizeof exif, segment.size()));
        }
        at += 2 + length;
    }
    return kUpright;
}

Image upright(const Image& image, int orientation) {
    if (orientation == kUpright) {
        return image;
    }
    const bool turned = orientation >= 5;
    const bool mirrored_across = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    const bool mirrored_down = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    Image result = image;
    if (turned) {
        std::swap(result.width, result.height);
    }
    const std::size_t pixel =
        image.pixels.size() / (static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height));
    std::uint8_t* out = result.pixels.data();
    for (int y = 0; y < result.height; ++y) {
        for (int x = 0; x < result.width; ++x) {
            const int across = mirrored_across ? result.width - 1 - x : x;
            const int down = mirrored_down ? result.height - 1 - y : y;
            const auto column = static_cast<std::size_t>(turned ? down : across);
            const auto row = static_cast<std::size_t>(turned ? across : down);
            const std::size_t from = row * static_cast<std::size_t>(image.width) + column;
            std::memcpy(out, image.pixels.data() + from * pixel, pixel);
            out += pixel;
        }
    }
    return result;
}
