#include "image_file.hpp"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include "exif_orientation.hpp"

#if defined(HOLOCRON_EXAMPLES_JPEG)
#include <turbojpeg.h>
#endif
#if defined(HOLOCRON_EXAMPLES_PNG)
#include <png.h>
#endif

namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr int kMaxPixelsASide = 1 << 16;

std::runtime_error damaged(const std::filesystem::path& path, const std::string& why) {
    return std::runtime_error(path.string() + " cannot be decoded: " + why);
}

Bytes bytes_of(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    Bytes bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file || bytes.empty()) {
        throw std::runtime_error("cannot read " + path.string());
    }
    return bytes;
}

std::string extension_of(const std::filesystem::path& path) {
    std::string extension = path.extension().string();
    std::transform(extension.begin(), extension.end(), extension.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return extension;
}

bool is_jpeg(const std::string& extension) { return extension == ".jpg" || extension == ".jpeg"; }
bool is_pnm(const std::string& extension) { return extension == ".ppm" || extension == ".pgm" || extension == ".pnm"; }

void set_size(Image& image, int width, int height, std::size_t channels, const std::filesystem::path& path) {
    if (width < 1 || height < 1 || width > kMaxPixelsASide || height > kMaxPixelsASide) {
        throw damaged(path, "its size is " + std::to_string(width) + " x " + std::to_string(height));
    }
    image.width = width;
    image.height = height;
    image.pixels.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * channels);
}

// A number of a PNM header, behind white space and comments.
int pnm_number(const Bytes& bytes, std::size_t& at, const std::filesystem::path& path) {
    while (at < bytes.size() && (std::isspace(bytes[at]) != 0 || bytes[at] == '#')) {
        if (bytes[at] == '#') {
            at = static_cast<std::size_t>(
                std::find(bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.end(), '\n') - bytes.begin());
        } else {
            ++at;
        }
    }
    int number = 0;
    const std::size_t begin = at;
    for (; at < bytes.size() && at < begin + 6 && std::isdigit(bytes[at]) != 0; ++at) {
        number = 10 * number + (bytes[at] - '0');
    }
    if (at == begin) {
        throw damaged(path, "its header is not that of a PNM file");
    }
    return number;
}

Image read_pnm(const std::filesystem::path& path) {
    const Bytes bytes = bytes_of(path);
    if (bytes.size() < 2 || bytes[0] != 'P' || (bytes[1] != '5' && bytes[1] != '6')) {
        throw damaged(path, "it is not a binary PGM or PPM file");
    }
    const std::size_t channels = bytes[1] == '6' ? 3 : 1;
    std::size_t at = 2;
    const int width = pnm_number(bytes, at, path);
    const int height = pnm_number(bytes, at, path);
    if (pnm_number(bytes, at, path) != 255) {
        throw damaged(path, "its values are not of 8 bits");
    }
    Image image;
    image.format = channels == 3 ? holocron::Format::RGB : holocron::Format::Gray;
    set_size(image, width, height, channels, path);
    ++at;  // one white space
    if (at > bytes.size() || bytes.size() - at < image.pixels.size()) {
        throw damaged(path, "it was cut off");
    }
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), image.pixels.size(), image.pixels.begin());
    return image;
}

#if defined(HOLOCRON_EXAMPLES_JPEG)
Image read_jpeg(const std::filesystem::path& path) {
    const Bytes bytes = bytes_of(path);
    const auto size = static_cast<unsigned long>(bytes.size());
    const std::unique_ptr<void, int (*)(tjhandle)> decoder(tjInitDecompress(), tjDestroy);
    int width = 0;
    int height = 0;
    int subsampling = 0;
    int colours = 0;
    Image image;
    if (tjDecompressHeader3(decoder.get(), bytes.data(), size, &width, &height, &subsampling, &colours) != 0) {
        throw damaged(path, tjGetErrorStr2(decoder.get()));
    }
    set_size(image, width, height, 3, path);
    if (tjDecompress2(decoder.get(), bytes.data(), size, image.pixels.data(), width, 0, height, TJPF_RGB,
                      TJFLAG_ACCURATEDCT) != 0) {
        throw damaged(path, tjGetErrorStr2(decoder.get()));
    }
    return upright(image, exif_orientation(bytes));
}
#endif

#if defined(HOLOCRON_EXAMPLES_PNG)
// What libpng holds while it reads or writes.
struct Png : png_image {
    Png() : png_image{} { version = PNG_IMAGE_VERSION; }
    Png(const Png&) = delete;
    Png& operator=(const Png&) = delete;
    ~Png() { png_image_free(this); }
};

Image read_png(const std::filesystem::path& path) {
    Png png;
    if (png_image_begin_read_from_file(&png, path.string().c_str()) == 0) {
        throw damaged(path, png.message);
    }
    png.format = PNG_FORMAT_RGBA;  // not RGB: that would blend what is transparent with a background
    Image image;
    image.format = holocron::Format::RGBA;
    set_size(image, static_cast<int>(std::min<png_uint_32>(png.width, kMaxPixelsASide + 1)),
             static_cast<int>(std::min<png_uint_32>(png.height, kMaxPixelsASide + 1)), 4, path);
    if (png_image_finish_read(&png, nullptr, image.pixels.data(), 0, nullptr) == 0) {
        throw damaged(path, png.message);
    }
    return image;
}
#endif

}  // namespace

Image read_image(const std::filesystem::path& path) {
    const std::string extension = extension_of(path);
    if (is_pnm(extension)) {
        return read_pnm(path);
    }
#if defined(HOLOCRON_EXAMPLES_JPEG)
    if (is_jpeg(extension)) {
        return read_jpeg(path);
    }
#endif
#if defined(HOLOCRON_EXAMPLES_PNG)
    if (extension == ".png") {
        return read_png(path);
    }
#endif
    throw std::runtime_error(path.string() + " is of a kind that this example was not built for");
}

bool is_image(const std::filesystem::path& path) {
    const std::string extension = extension_of(path);
#if defined(HOLOCRON_EXAMPLES_JPEG)
    if (is_jpeg(extension)) {
        return true;
    }
#endif
#if defined(HOLOCRON_EXAMPLES_PNG)
    if (extension == ".png") {
        return true;
    }
#endif
    return is_pnm(extension);
}

std::filesystem::path write_image(const std::filesystem::path& path, const Image& image) {
#if defined(HOLOCRON_EXAMPLES_PNG)
    const std::filesystem::path file = path.string() + ".png";
    Png png;
    png.width = static_cast<png_uint_32>(image.width);
    png.height = static_cast<png_uint_32>(image.height);
    png.format = PNG_FORMAT_RGB;
    if (png_image_write_to_file(&png, file.string().c_str(), 0, image.pixels.data(), 0, nullptr) == 0) {
        throw std::runtime_error("cannot write " + file.string() + ": " + png.message);
    }
#else
    const std::filesystem::path file = path.string() + ".ppm";
    std::ofstream out(file, std::ios::binary);
    out << "P6\n" << image.width << ' ' << image.height << "\n255\n";
    out.write(reinterpret_cast<const char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!out.flush()) {
        throw std::runtime_error("cannot write " + file.string());
    }
#endif
    return file;
}
