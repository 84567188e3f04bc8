/// \file
/// What a model answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "holocron/errors.hpp"
#include "holocron/export.h"
#include "holocron/size.hpp"

namespace holocron {

/// Names of the classes, one a class, shared by a model and its answers.
using Labels = std::shared_ptr<const std::vector<std::string>>;

/// One class of an answer.
struct Prediction {
    std::string label;  ///< the class's name
    int index = 0;      ///< its place among the labels
    double score = 0;   ///< its softmax probability, 0 to 1
};

/// A class by its number, and how likely it is.
struct RankedClass {
    int index = 0;     ///< place among the labels
    double score = 0;  ///< softmax probability, 0 to 1
};

/// A classifier's answer to one frame.
struct HOLOCRON_API Classification {
    std::vector<RankedClass> ranking;  ///< likeliest first, of equal ones the lower index; 1 at least
    std::vector<float> logits;         ///< one a class; empty where the network gives the likeliest classes alone
    Labels labels;                     ///< one name a class

    /// How many classes are ranked.
    [[nodiscard]] std::size_t size() const noexcept { return ranking.size(); }
    /// Name of the class of that rank, 0 the likeliest. \throws ArgumentError if there is no such rank
    [[nodiscard]] const std::string& label(std::size_t rank = 0) const;
    /// Index of the class of that rank. \throws ArgumentError if there is no such rank
    [[nodiscard]] int index(std::size_t rank = 0) const;
    /// Softmax probability of the class of that rank, 0 to 1. \throws ArgumentError if there is no such rank
    [[nodiscard]] double score(std::size_t rank = 0) const;
    /// The k likeliest classes, or all if there are fewer. \throws ArgumentError if k is 0
    [[nodiscard]] std::vector<Prediction> top(std::size_t k = 5) const;
};

/// A rectangle in pixels of the frame, from its upper left corner.
struct Box {
    float xmin = 0;
    float ymin = 0;
    float xmax = 0;
    float ymax = 0;

    [[nodiscard]] constexpr float width() const noexcept { return xmax - xmin; }
    [[nodiscard]] constexpr float height() const noexcept { return ymax - ymin; }
};

/// One object.
struct Detection {
    Box box;
    float score = 0;         ///< how certain the network is of it, 0 to 1
    std::int32_t index = 0;  ///< the class's place among the labels
};

/// Flags of `Detections::status`.
enum DetectionStatus : std::int32_t {
    kUnsettled = 1,          ///< the scene needs more steps: some boxes should have been suppressed
    kTruncated = 2,          ///< there are more detections than rows: the least certain are missing
    kTooManyCandidates = 4,  ///< more boxes reached the score threshold than take part
    kNotFinite = 8,          ///< the network answered with NaN or infinite values
};

/// A detector's answer to one frame, the most certain object first.
struct HOLOCRON_API Detections {
    std::vector<Detection> objects;
    Labels labels;            ///< one name a class
    Size frame_size;          ///< of the frame
    std::int32_t status = 0;  ///< 0 if these are all, exactly; otherwise a sum of `DetectionStatus`

    [[nodiscard]] std::size_t size() const noexcept { return objects.size(); }
    [[nodiscard]] bool empty() const noexcept { return objects.empty(); }
    [[nodiscard]] std::vector<Detection>::const_iterator begin() const noexcept { return objects.begin(); }
    [[nodiscard]] std::vector<Detection>::const_iterator end() const noexcept { return objects.end(); }
    /// An object by its rank. \throws ArgumentError if there is no such one
    [[nodiscard]] const Detection& operator[](std::size_t i) const;
    /// Name of the class of an object. \throws ArgumentError if there is no such one
    [[nodiscard]] const std::string& label(std::size_t i) const;
    /// Name of the class of one of these objects. \throws ArgumentError if there is no such class
    [[nodiscard]] const std::string& label(const Detection& object) const;
    /// What is not as it should be about this answer, and what to do about it; empty if nothing is.
    [[nodiscard]] std::vector<std::string> remarks() const;
};

/// A class for each cell of a grid, row by row.
struct ClassMap {
    Size size;
    std::vector<std::int32_t> classes;  ///< `size.height * size.width` indices

    /// The class of a cell, which must exist.
    [[nodiscard]] std::int32_t at(int row, int column) const {
        return classes[static_cast<std::size_t>(row) * static_cast<std::size_t>(size.width) +
                       static_cast<std::size_t>(column)];
    }
};

/// How much of a frame one class has.
struct ClassShare {
    std::string label;  ///< the class's name
    int index = 0;      ///< its place among the labels
    double share = 0;   ///< of the frame's pixels, 0 to 1
};

/// Where a frame lies in the network's input after resizing and padding, in the network's pixels.
struct Placement {
    int top = 0;
    int left = 0;
    Size inner;  ///< of the resized frame
    Size outer;  ///< of the network's input
};

/// A segmenter's answer to one frame: the class of each pixel.
struct HOLOCRON_API Segmentation {
    ClassMap class_map;                ///< as the network gives it; padding is still in it
    std::vector<float> probabilities;  ///< `(classes, height, width)`, softmax over the classes; empty if not given
    Size probabilities_size;           ///< height and width of those
    Labels labels;                     ///< one name a class
    Size frame_size;                   ///< of the frame
    Placement placement;               ///< how the frame became the network's input
    bool fits_frame = false;           ///< whether `class_map` is that of the frame's pixels already

    /// The class of each pixel of the frame: what preprocessing did is undone. Padding is cut away, and each pixel
    /// takes the class of the cell that its centre falls into.
    [[nodiscard]] ClassMap resized() const;
    /// The classes that the frame has by their share of its pixels, largest first, of equal ones the lower index first.
    ///
    /// \param k how many at most; 0 for all
    [[nodiscard]] std::vector<ClassShare> regions(std::size_t k = 0) const;
};

}  // namespace holocron
