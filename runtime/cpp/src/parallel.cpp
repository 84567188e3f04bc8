#include "parallel.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace holocron::detail {

void parallel_ranges(int count, int threads, const std::function<void(int, int)>& work) {
    if (count <= 0) {
        return;
    }
    threads = std::max(1, std::min(threads, count));
    if (threads == 1) {
        work(0, count);
        return;
    }
    const auto bound = [&](int i) { return static_cast<int>(std::int64_t{count} * i / threads); };
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(threads));
    const auto share = [&](int i) noexcept {
        try {
            work(bound(i), bound(i + 1));
        } catch (...) {
            errors[static_cast<std::size_t>(i)] = std::current_exception();
        }
    };

    std::vector<std::thread> workers;
    workers.reserve(static_cast<std::size_t>(threads) - 1);
    int started = 1;
    try {
        for (; started < threads; ++started) {
            workers.emplace_back(share, started);
        }
    } catch (const std::system_error&) {
        // No more threads here: what is left is done below.
    }
    share(0);
    for (int i = started; i < threads; ++i) {
        share(i);
    }
    for (std::thread& worker : workers) {
        worker.join();
    }
    for (const std::exception_ptr& error : errors) {
        if (error) {
            std::rethrow_exception(error);
        }
    }
}

}  // namespace holocron::detail
