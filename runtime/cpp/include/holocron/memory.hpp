/// \file
/// Where memory lies.
#pragma once

namespace holocron {

/// Where memory lies.
enum class Memory {
    Host,  ///< the processor's
    Cuda,  ///< that of the GPU that the model was loaded on
};

}  // namespace holocron
