/// \file
/// What was computed for the latest few sizes of images: a camera gives the same size every time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "holocron/size.hpp"

namespace holocron::detail {

/// Remembers values by size; those used longest ago are forgotten. Threads may share one.
template <typename Value>
class SizeCache {
 public:
    /// The value of a size.
    ///
    /// \param make makes the value if it is not remembered; several threads may do so at once
    template <typename Make>
    [[nodiscard]] std::shared_ptr<const Value> get(Size size, const Make& make) const {
        if (std::shared_ptr<const Value> known = find(size)) {
            return known;
        }
        auto made = std::make_shared<const Value>(make());
        const std::lock_guard<std::mutex> lock(mutex_);
        if (entries_.size() == kCapacity) {
            entries_.pop_back();
        }
        entries_.insert(entries_.begin(), {size, made});
        return made;
    }

 private:
    static constexpr std::size_t kCapacity = 8;

    [[nodiscard]] std::shared_ptr<const Value> find(Size size) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found =
            std::find_if(entries_.begin(), entries_.end(), [size](const Entry& entry) { return entry.first == size; });
        if (found == entries_.end()) {
            return nullptr;
        }
        std::rotate(entries_.begin(), found, found + 1);
        return entries_.front().second;
    }

    using Entry = std::pair<Size, std::shared_ptr<const Value>>;
    mutable std::mutex mutex_;
    mutable std::vector<Entry> entries_;  // the latest first
};

}  // namespace holocron::detail
