/// \file
/// What the functions of the C interface have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "holocron/errors.hpp"
#include "holocron/model.hpp"
#include "holocron/runtime.h"

struct holocron_model {
    holocron::Model model;
    std::vector<std::vector<std::int64_t>> input_shapes;  // -1 where a dimension may vary
    std::vector<std::vector<std::int64_t>> output_shapes;
};

namespace holocron::detail {

/// The share of each class of a segmentation, computed when it is first asked for, by whichever thread.
class ClassShares {
 public:
    const std::vector<ClassShare>& of(const Segmentation& answer) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!shares_) {
            shares_ = answer.regions();
        }
        return *shares_;
    }

 private:
    mutable std::mutex mutex_;
    mutable std::optional<std::vector<ClassShare>> shares_;
};

}  // namespace holocron::detail

struct holocron_results {
    holocron::Task task;
    std::vector<holocron::Classification> classifications;
    std::vector<holocron::Detections> detections;
    std::vector<holocron::Segmentation> segmentations;
    std::deque<holocron::detail::ClassShares> shares;  // of the segmentations; they do not move
};

struct holocron_tensors {
    holocron::Tensors tensors;
};

namespace holocron::detail {

/// Remember what went wrong in this thread.
void set_last_error(const char* message) noexcept;

/// Do something, and turn an exception into a status.
template <typename Action>
holocron_status guarded(Action action) noexcept {
    try {
        action();
        return HOLOCRON_OK;
    } catch (const BundleError& e) {
        set_last_error(e.what());
        return HOLOCRON_ERROR_BUNDLE;
    } catch (const BackendError& e) {
        set_last_error(e.what());
        return HOLOCRON_ERROR_BACKEND;
    } catch (const ImageError& e) {
        set_last_error(e.what());
        return HOLOCRON_ERROR_IMAGE;
    } catch (const InputError& e) {
        set_last_error(e.what());
        return HOLOCRON_ERROR_INPUT;
    } catch (const ArgumentError& e) {
        set_last_error(e.what());
        return HOLOCRON_ERROR_ARGUMENT;
    } catch (const std::bad_alloc&) {
        set_last_error("there is not enough memory");
        return HOLOCRON_ERROR_MEMORY;
    } catch (const std::exception& e) {
        set_last_error(e.what());
        return HOLOCRON_ERROR_INTERNAL;
    } catch (...) {
        set_last_error("an unknown error");
        return HOLOCRON_ERROR_INTERNAL;
    }
}

/// A pointer that must not be null. \throws ArgumentError if it is
template <typename T>
T& needed(T* pointer, const char* name) {
    if (pointer == nullptr) {
        throw ArgumentError("the argument " + std::string(name) + " is null");
    }
    return *pointer;
}

/// An entry that must exist. \throws ArgumentError if it does not
template <typename Entries>
auto& entry(Entries& entries, std::size_t index, const char* name) {
    if (index >= entries.size()) {
        throw ArgumentError(std::string(name) + " is " + std::to_string(index) + ", and there are " +
                            std::to_string(entries.size()));
    }
    return entries[index];
}

/// Frames of the C interface. \throws ArgumentError if they are null or have an unknown format
[[nodiscard]] std::vector<Frame> frames_of(const holocron_frame* frames, std::size_t count);

/// Views of tensors of the C interface. \throws ArgumentError if something is null, unknown or given twice
[[nodiscard]] TensorViews views_of(const holocron_tensor* tensors, std::size_t count);

/// A tensor for the C interface, which is valid as long as what it was made of.
void describe(const std::string& name, const Tensor& tensor, holocron_tensor& target) noexcept;

}  // namespace holocron::detail
