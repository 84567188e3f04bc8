/// \file
/// The errors of the runtime: one small hierarchy, each message one line that names the value and the remedy.
#pragma once

#include <stdexcept>
#include <string>

#include "holocron/export.h"

namespace holocron {

/// Base of every error that the runtime raises on purpose.
class HOLOCRON_API Error : public std::runtime_error {
 public:
    using std::runtime_error::runtime_error;
};

/// A bundle, its manifest or one of its files is missing, edited, truncated or of an unknown version.
class HOLOCRON_API BundleError : public Error {
 public:
    using Error::Error;
};

/// The precision, backend or device that was asked for does not exist here, or failed to open or run the network.
class HOLOCRON_API BackendError : public Error {
 public:
    using Error::Error;
};

/// What was given as a frame is not one, or is one that cannot be taken.
class HOLOCRON_API ImageError : public Error {
 public:
    using Error::Error;
};

/// A tensor given to the network has the wrong name, type, shape or values.
class HOLOCRON_API InputError : public Error {
 public:
    using Error::Error;
};

/// An argument is out of its range, or the call does not fit the model, e.g. `classify` of a detector.
class HOLOCRON_API ArgumentError : public Error {
 public:
    using Error::Error;
};

}  // namespace holocron
