/// \file
/// Image files for the examples: PNM always, JPEG and PNG where their libraries were found.
#pragma once

#include <cstdint>
#include <filesystem>
#include <holocron/frame.hpp>
#include <vector>

/// An image in memory, without gaps between its rows.
struct Image {
    int width = 0;
    int height = 0;
    holocron::Format format = holocron::Format::RGB;  ///< RGB or RGBA
    std::vector<std::uint8_t> pixels;

    /// What the library takes; valid as long as this image.
    [[nodiscard]] holocron::Frame frame() const { return {pixels.data(), width, height, 0, format}; }
};

/// Read an image, upright: the EXIF orientation of a JPEG file is applied.
///
/// \throws std::runtime_error if the file cannot be read, is damaged, or is of a kind that is not built in
[[nodiscard]] Image read_image(const std::filesystem::path& path);

/// Whether a file's name ends as those do that read_image takes.
[[nodiscard]] bool is_image(const std::filesystem::path& path);

/// Write an RGB image: as PNG where that is built in, as PPM otherwise.
///
/// \param path without an extension, which is added
/// \return the file that was written
/// \throws std::runtime_error if it cannot be written
std::filesystem::path write_image(const std::filesystem::path& path, const Image& image);
