#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace holocron::detail {
namespace {

using Work = std::function<void(int, int)>;

constexpr std::chrono::microseconds kPatience{50};

// One call: its ranges, each taken by whichever thread comes first.
class Job {
 public:
    Job(int count, int parts, const Work& work) : count_(count), parts_(parts), work_(work) {}

    // Takes ranges until there are none.
    void help() noexcept {
        for (int part = next_++; part < parts_; part = next_++) {
            std::exception_ptr error;
            try {
                work_(bound(part), bound(part + 1));
            } catch (...) {
                error = std::current_exception();
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            if (error && !error_) {
                error_ = error;
            }
            if (++done_ == parts_) {
                all_done_.notify_one();
            }
        }
    }

    // Waits for the ranges that other threads took. Afterwards the work is not called any more.
    void wait() {
        // They mostly end together, and going to sleep and being woken takes longer than the difference.
        const auto patience = std::chrono::steady_clock::now() + kPatience;
        while (done_ != parts_ && std::chrono::steady_clock::now() < patience) {
        }
        std::unique_lock<std::mutex> lock(mutex_);
        all_done_.wait(lock, [this] { return done_ == parts_; });
        if (error_) {
            std::rethrow_exception(error_);
        }
    }

 private:
    [[nodiscard]] int bound(int part) const noexcept { return static_cast<int>(std::int64_t{count_} * part / parts_); }

    int count_;
    int parts_;
    const Work& work_;
    std::atomic<int> next_{0};
    std::mutex mutex_;
    std::condition_variable all_done_;
    std::atomic<int> done_{0};
    std::exception_ptr error_;
};

long this_process() noexcept {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;
#endif
}

// The threads of the process, and the jobs that they are called to.
class Workers {
 public:
    Workers() = default;
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    ~Workers() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ending_ = true;
        }
        called_.notify_all();
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }

    // Whether this is the process that started them; a fork of it has none, and their locks may be held for ever.
    [[nodiscard]] bool are_here() const noexcept { return process_ == this_process(); }

    void call(const std::shared_ptr<Job>& job, std::size_t helpers) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            start(helpers);
            calls_.insert(calls_.end(), helpers, job);
        }
        for (std::size_t i = 0; i < helpers; ++i) {
            called_.notify_one();
        }
    }

    // Forgets the calls that nobody has answered.
    void call_off(const std::shared_ptr<Job>& job) {
        const std::lock_guard<std::mutex> lock(mutex_);
        calls_.erase(std::remove(calls_.begin(), calls_.end(), job), calls_.end());
    }

 private:
    void start(std::size_t wanted) {
        try {
            while (threads_.size() < wanted) {
                threads_.emplace_back([this] { serve(); });
            }
        } catch (const std::system_error&) {
            // Those that there are, and the callers, do the work.
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            called_.wait(lock, [this] { return ending_ || !calls_.empty(); });
            if (ending_) {
                return;
            }
            const std::shared_ptr<Job> job = std::move(calls_.front());
            calls_.pop_front();
            lock.unlock();
            job->help();
            lock.lock();
        }
    }

    long process_ = this_process();
    std::mutex mutex_;
    std::condition_variable called_;
    std::deque<std::shared_ptr<Job>> calls_;
    std::vector<std::thread> threads_;
    bool ending_ = false;
};

// Ends the threads with the process. Those that a fork has not cannot be waited for, not even by a destructor.
struct EndHere {
    void operator()(Workers* workers) const {
        if (workers->are_here()) {
            std::default_delete<Workers>()(workers);
        }
    }
};

Workers& workers() {
    static const std::unique_ptr<Workers, EndHere> instance(std::make_unique<Workers>().release());
    return *instance;
}

}  // namespace

void parallel_ranges(int count, int threads, const std::function<void(int, int)>& work) {
    if (count <= 0) {
        return;
    }
    const int parts = std::min(threads, count);
    if (parts <= 1 || !workers().are_here()) {
        work(0, count);
        return;
    }
    const auto job = std::make_shared<Job>(count, parts, work);
    workers().call(job, static_cast<std::size_t>(parts) - 1);
    job->help();
    workers().call_off(job);
    job->wait();
}

}  // namespace holocron::detail
