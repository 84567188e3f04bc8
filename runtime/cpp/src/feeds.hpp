/// \file
/// From frames to the tensors that a network takes: preprocessed here, or as frames for a network that does it itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "holocron/frame.hpp"
#include "holocron/tensor.hpp"
#include "manifest.hpp"
#include "pixel_format.hpp"
#include "preprocessing.hpp"
#include "resampling.hpp"
#include "resize_matrices.hpp"
#include "size_cache.hpp"

namespace holocron::detail {

/// Where a feeder puts a network's inputs.
class InputSink {
 public:
    InputSink() = default;
    InputSink(const InputSink&) = delete;
    InputSink& operator=(const InputSink&) = delete;
    virtual ~InputSink() = default;

    /// Memory for an input, to be filled. \param index in the manifest
    virtual MutableTensorView stage(std::size_t index, const Shape& shape) = 0;
    /// An input that is there already. \param owner keeps its memory; null for the caller's own
    virtual void bind(std::size_t index, const TensorView& view, std::shared_ptr<const void> owner) = 0;
};

/// Some frames in a row.
struct FrameRange {
    const Frame* begin = nullptr;
    std::size_t count = 0;
    std::size_t first = 0;  ///< number of the first one, for errors
};

/// Turns frames into the inputs of one network. Threads may share one.
class Feeder {
 public:
    /// \param manifest of the model, which must live as long
    /// \param threads the most to use for one frame
    /// \throws BundleError if the network's input has no such elements
    Feeder(const Manifest& manifest, int threads);

    /// Put frames into the inputs.
    ///
    /// \param frames 1 at least
    /// \param batch entries of the inputs, as many as there are frames at least; the others are zeros
    /// \param sink takes the inputs
    /// \return height and width of each frame
    /// \throws ImageError if one cannot be taken, or is larger than the network takes, or its size is another than
    /// theirs
    [[nodiscard]] std::vector<Size> feed(const FrameRange& frames, std::size_t batch, InputSink& sink) const;

 private:
    /// A frame that becomes an entry of the input `frame`, and the matrices that go with it.
    struct Entry {
        FrameRows rows;
        Size size;  ///< what is left of it once its rows were resized, where they must be
        bool rows_first = false;
        std::shared_ptr<const ResizeMatrices> matrices;
    };

    void feed_images(const FrameRange& frames, std::size_t batch, InputSink& sink) const;
    void feed_fixed_frames(const FrameRange& frames, std::size_t batch, InputSink& sink) const;
    void feed_frames(const FrameRange& frames, std::size_t batch, InputSink& sink) const;
    void check_size(Size size, const std::string& name) const;
    void check_memory(const FrameRange& frames, std::size_t batch) const;
    [[nodiscard]] bool lies_ready(const FrameRange& frames, std::size_t batch) const;
    [[nodiscard]] Entry entry(const Frame& frame, const std::string& name) const;
    void write(const Entry& entry, std::uint8_t* out) const;

    const Manifest* manifest_;
    int threads_;
    Preprocessor preprocessor_;
    SizeCache<ResizeMatrices> matrices_;
    SizeCache<ResizeMatrices> matrices_after_rows_;
    SizeCache<Resampler> resamplers_;
};

}  // namespace holocron::detail
