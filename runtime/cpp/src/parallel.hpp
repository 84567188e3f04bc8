/// \file
/// Work on ranges, shared by a few threads.
#pragma once

#include <functional>

namespace holocron::detail {

/// Splits 0 … count - 1 into ranges of about equal length, as many as threads, and works on them at the same time.
///
/// The calling thread takes part, and takes what the others have not begun when it is done with its own: on a busy
/// machine it does not wait for a thread that the system has not let run yet. The other threads are started when they
/// are first needed, stay for the next call, whoever makes it, and end with the process. Where the system refuses to
/// start one there is one less; in a fork of the process there are none.
///
/// \param count how many there are
/// \param threads the most to use, the calling one included; 1 at least
/// \param work called with the first and one past the last of a range; an exception ends up in the caller
void parallel_ranges(int count, int threads, const std::function<void(int, int)>& work);

}  // namespace holocron::detail
