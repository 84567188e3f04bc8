#include "feeds.hpp"

#include <algorithm>
#include <cstring>

#include "convert.hpp"

namespace holocron::detail {

namespace {

constexpr std::size_t kChannels = 3;

std::string name_of(const FrameRange& frames, std::size_t i) { return "image " + std::to_string(frames.first + i); }

std::int64_t extent(std::size_t value) { return static_cast<std::int64_t>(value); }

std::string by(Size size) { return std::to_string(size.height) + " x " + std::to_string(size.width); }

std::size_t bytes_of(Size size) {
    return static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width) * kChannels;
}

void fill_zero(const MutableTensorView& view) { std::memset(view.data, 0, view.byte_count()); }

/// Copy a matrix into the upper left of a larger one.
template <typename T>
void copy_corner(const T* source, std::size_t rows, std::size_t columns, T* target, std::size_t stride) {
    for (std::size_t row = 0; row < rows; ++row) {
        std::copy_n(source + row * columns, columns, target + row * stride);
    }
}

}  // namespace

Feeder::Feeder(const Manifest& manifest, int threads)
    : manifest_(&manifest), threads_(threads), preprocessor_(manifest.preprocessing) {
    const auto type = manifest.inputs.front().type;
    const bool is_real = type == ElementType::Float32 || type == ElementType::Float16 || type == ElementType::Float64;
    if (!manifest.frame && !is_real) {
        throw BundleError(manifest.name + ": a network of images takes floating-point numbers, this one takes " +
                          std::string(to_string(type)) + "; export the model again");
    }
}

std::vector<Size> Feeder::feed(const FrameRange& frames, std::size_t batch, InputSink& sink) const {
    std::vector<Size> sizes;
    for (std::size_t i = 0; i < frames.count; ++i) {
        const std::string name = name_of(frames, i);
        sizes.push_back(FrameRows(frames.begin[i], name).size());
        if (manifest_->frame) {
            check_size(sizes.back(), name);
        }
    }
    check_memory(frames, batch);
    if (!manifest_->frame) {
        feed_images(frames, batch, sink);
    } else if (manifest_->frame->fixed) {
        feed_fixed_frames(frames, batch, sink);
    } else {
        feed_frames(frames, batch, sink);
    }
    return sizes;
}

void Feeder::feed_images(const FrameRange& frames, std::size_t batch, InputSink& sink) const {
    const Size size = manifest_->preprocessing.size;
    const std::size_t values = preprocessor_.value_count();
    const auto input = sink.stage(0, {extent(batch), extent(kChannels), size.height, size.width});
    const bool in_place = input.type == ElementType::Float32;
    std::vector<float> converted(in_place ? 0 : values);
    for (std::size_t i = 0; i < frames.count; ++i) {
        float* out = in_place ? static_cast<float*>(input.data) + i * values : converted.data();
        preprocessor_(frames.begin[i], out, threads_, name_of(frames, i));
        if (!in_place) {
            from_floats(converted.data(), values, input, i * values);
        }
    }
    const std::size_t entry_bytes = values * element_size(input.type);
    std::memset(static_cast<std::byte*>(input.data) + frames.count * entry_bytes, 0,
                (batch - frames.count) * entry_bytes);
}

/// Whether a single frame lies in memory just as the network takes it, so that nothing need be copied.
bool Feeder::lies_ready(const FrameRange& frames, std::size_t batch) const {
    const Frame& frame = *frames.begin;
    const auto row = static_cast<std::ptrdiff_t>(frame.width) * static_cast<std::ptrdiff_t>(kChannels);
    return batch == 1 && !frame.region && (frame.stride == 0 || frame.stride == row) &&
           frame.format == (manifest_->frame->bgr ? Format::BGR : Format::RGB);
}

void Feeder::feed_fixed_frames(const FrameRange& frames, std::size_t batch, InputSink& sink) const {
    const Size size = manifest_->frame->size;
    const Shape shape{extent(batch), size.height, size.width, extent(kChannels)};
    if (lies_ready(frames, batch)) {
        sink.bind(0, {frames.begin->pixels, shape, frames.begin->memory}, nullptr);
        return;
    }
    const auto input = sink.stage(0, shape);
    auto* out = input.elements<std::uint8_t>();
    for (std::size_t i = 0; i < frames.count; ++i) {
        FrameRows(frames.begin[i], name_of(frames, i)).pack(out + i * bytes_of(size), manifest_->frame->bgr);
    }
    std::memset(out + frames.count * bytes_of(size), 0, (batch - frames.count) * bytes_of(size));
}

Feeder::Entry Feeder::entry(const Frame& frame, const std::string& name) const {
    const Preprocessing& preprocessing = manifest_->preprocessing;
    FrameRows rows(frame, name);
    const Size size = rows.size();
    // The graph multiplies by the columns first. The few frames whose rows Pillow takes first get that pass here: they
    // are narrow ones.
    if (needs_rows_first(size, preprocessing)) {
        const auto make = [&] { return resize_matrices_after_rows(size, preprocessing); };
        return {rows, rows_done(size, preprocessing), true, matrices_after_rows_.get(size, make)};
    }
    return {rows, size, false, matrices_.get(size, [&] { return resize_matrices(size, preprocessing); })};
}

/// The pixels of an entry in the network's order of channels, its rows resized where they must be.
void Feeder::write(const Entry& entry, std::uint8_t* out) const {
    const bool bgr = manifest_->frame->bgr;
    if (!entry.rows_first) {
        entry.rows.pack(out, bgr);
        return;
    }
    const Size size = entry.rows.size();
    std::vector<std::uint8_t> packed(bytes_of(size));
    entry.rows.pack(packed.data(), bgr);
    const auto resampler =
        resamplers_.get(size, [&] { return Resampler(size, entry.size, manifest_->preprocessing.interpolation); });
    const Frame frame{packed.data(), size.width, size.height, 0, Format::RGB};
    (*resampler)(FrameRows(frame, "the frame"), out, threads_);
}

void Feeder::feed_frames(const FrameRange& frames, std::size_t batch, InputSink& sink) const {
    std::vector<Entry> entries;
    Size largest;
    for (std::size_t i = 0; i < frames.count; ++i) {
        entries.push_back(entry(frames.begin[i], name_of(frames, i)));
        largest.height = std::max(largest.height, entries.back().size.height);
        largest.width = std::max(largest.width, entries.back().size.width);
    }
    const Size target = manifest_->preprocessing.size;
    const Shape pixels_shape{extent(batch), largest.height, largest.width, extent(kChannels)};
    const Shape rows_shape{extent(batch), target.height, largest.height};
    const Shape columns_shape{extent(batch), largest.width, target.width};
    if (batch == 1) {
        const Entry& only = entries.front();
        if (!only.rows_first && lies_ready(frames, batch)) {
            sink.bind(0, {frames.begin->pixels, pixels_shape, frames.begin->memory}, nullptr);
        } else {
            write(only, sink.stage(0, pixels_shape).elements<std::uint8_t>());
        }
        sink.bind(1, {only.matrices->rows.data(), rows_shape}, only.matrices);
        sink.bind(2, {only.matrices->columns.data(), columns_shape}, only.matrices);
        return;
    }
    const auto pixels = sink.stage(0, pixels_shape);
    const auto rows = sink.stage(1, rows_shape);
    const auto columns = sink.stage(2, columns_shape);
    fill_zero(pixels);
    fill_zero(rows);
    fill_zero(columns);
    const auto height = static_cast<std::size_t>(largest.height);
    const auto width = static_cast<std::size_t>(largest.width);
    const auto target_height = static_cast<std::size_t>(target.height);
    const auto target_width = static_cast<std::size_t>(target.width);
    std::vector<std::uint8_t> packed;
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const Entry& each = entries[i];
        const auto own_height = static_cast<std::size_t>(each.size.height);
        const auto own_width = static_cast<std::size_t>(each.size.width);
        packed.resize(bytes_of(each.size));
        write(each, packed.data());
        copy_corner(packed.data(), own_height, own_width * kChannels,
                    pixels.elements<std::uint8_t>() + i * bytes_of(largest), width * kChannels);
        copy_corner(each.matrices->rows.data(), target_height, own_height,
                    rows.elements<float>() + i * target_height * height, height);
        copy_corner(each.matrices->columns.data(), own_width, target_width,
                    columns.elements<float>() + i * width * target_width, target_width);
    }
}

/// A frame on the GPU is taken by its pointer, or not at all: nothing here reads it.
void Feeder::check_memory(const FrameRange& frames, std::size_t batch) const {
    for (std::size_t i = 0; i < frames.count; ++i) {
        if (frames.begin[i].memory == Memory::Host) {
            continue;
        }
        const bool ready = manifest_->frame && lies_ready(frames, batch);
        const Size size{frames.begin[i].height, frames.begin[i].width};
        if (!ready || (!manifest_->frame->fixed && needs_rows_first(size, manifest_->preprocessing))) {
            throw ImageError(name_of(frames, i) + " lies in the GPU's memory, which " + manifest_->name +
                             " takes one frame at a time, all of it, in its order of channels, without gaps between "
                             "rows, and if it was exported with --input frame: copy it to the host first");
        }
    }
}

void Feeder::check_size(Size size, const std::string& name) const {
    const FrameSpec& taken = *manifest_->frame;
    const std::string has = name + " has " + by(size) + " pixels (height x width), " + manifest_->name;
    if (taken.fixed && size != taken.size) {
        throw ImageError(has + " takes frames of " + by(taken.size) +
                         " only: resize it, or export the model with --frame " + std::to_string(size.height) + " " +
                         std::to_string(size.width) + " or with --max-frame");
    }
    if (size.height > taken.size.height || size.width > taken.size.width) {
        throw ImageError(has + " takes frames of up to " + by(taken.size) +
                         ": reduce it, or export the model with --max-frame " +
                         std::to_string(std::max(size.height, taken.size.height)) + " " +
                         std::to_string(std::max(size.width, taken.size.width)));
    }
}

}  // namespace holocron::detail
