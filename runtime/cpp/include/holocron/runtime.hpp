/// \file
/// Open a bundle and run it.
///
/// \code
/// auto model = holocron::load("repvgg_a0/");
/// auto result = model.classify({pixels, width, height, stride, holocron::Format::BGR});
/// std::cout << result.label(0) << ' ' << result.score(0) << '\n';
/// \endcode
#pragma once

#include "holocron/errors.hpp"
#include "holocron/frame.hpp"
#include "holocron/model.hpp"
#include "holocron/nms.hpp"
#include "holocron/results.hpp"
#include "holocron/tensor.hpp"
