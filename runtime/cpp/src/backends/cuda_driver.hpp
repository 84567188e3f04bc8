/// \file
/// Asking the NVIDIA driver, without CUDA's headers or its runtime: for backends that bring their own.
#pragma once

namespace holocron::detail {

/// Number of NVIDIA GPUs that the driver shows to this process; 0 without a driver.
[[nodiscard]] int driver_gpu_count() noexcept;

}  // namespace holocron::detail
