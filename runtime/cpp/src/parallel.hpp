/// \file
/// Work on ranges, shared by a few threads.
#pragma once

#include <functional>

namespace holocron::detail {

/// What one thread does with ranges: called with the first and one past the last. A range mostly begins where the one
/// before it ended, so that what was computed for that can be used again.
using RangeWork = std::function<void(int, int)>;

/// Works on 0 … count - 1 in ranges, several at the same time.
///
/// Each thread begins with a part of about equal length. One that is done with its own takes half of what another has
/// left: on a busy machine nobody waits for a thread that the system has not let run yet. The calling thread takes
/// part. The other threads are started when they are first needed, stay for the next call, whoever makes it, and end
/// with the process. Where the system refuses to start one there is one less; in a fork of the process there are none.
///
/// \param count how many there are
/// \param threads the most to use, the calling one included; 1 at least
/// \param grain ranges are of that length, but for the last of a part; 1 at least
/// \param make called in each thread that gets to do something; an exception of it or of the work ends up in the caller
void parallel_ranges(int count, int threads, int grain, const std::function<RangeWork()>& make);

}  // namespace holocron::detail
