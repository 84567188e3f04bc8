/// \file
/// Work on ranges, shared by a few threads that live as long as the call.
#pragma once

#include <functional>

namespace holocron::detail {

/// Splits 0 … count - 1 into ranges of about equal length, one a thread, and waits for all of them.
///
/// Starting a thread takes some 20 µs and no state that callers would have to share: more is not gained by keeping
/// threads. Where the system refuses to start one, the calling thread does its share.
///
/// \param count how many there are
/// \param threads the most to use, the calling one included; 1 at least
/// \param work called with the first and one past the last of a range; an exception ends up in the caller
void parallel_ranges(int count, int threads, const std::function<void(int, int)>& work);

}  // namespace holocron::detail
