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
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace holocron::detail {
namespace {

using Make = std::function<RangeWork()>;

constexpr std::chrono::microseconds kPatience{50};
constexpr std::size_t kCacheLine = 64;
constexpr int kWorthTaking = 4;  // grains: half of less is done before another thread has begun with it

// What is left of a part: its owner takes from the front, others take from the back.
class alignas(kCacheLine) Part {
 public:
    struct Range {
        int begin = 0;
        int end = 0;
        [[nodiscard]] int length() const noexcept { return end - begin; }
    };

    void set(Range range) noexcept { packed_ = pack(range); }
    [[nodiscard]] Range left() const noexcept { return unpack(packed_); }

    // The next few, or none.
    Range take(int grain) noexcept {
        return exchange([grain](Range left) {
            const int middle = left.begin + std::min(grain, left.length());
            return std::pair{Range{left.begin, middle}, Range{middle, left.end}};
        });
    }

    // The latter half, all of what is too short to be shared, or none.
    Range take_half(int grain) noexcept {
        return exchange([grain](Range left) {
            const int middle = left.begin + left.length() / (2 * grain) * grain;
            return std::pair{Range{middle, left.end}, Range{left.begin, middle}};
        });
    }

 private:
    static std::uint64_t pack(Range range) noexcept {
        return std::uint64_t{static_cast<std::uint32_t>(range.begin)} << 32U | static_cast<std::uint32_t>(range.end);
    }
    static Range unpack(std::uint64_t packed) noexcept {
        return {static_cast<int>(packed >> 32U), static_cast<int>(packed & 0xFFFFFFFFU)};
    }

    // Splits what is left into what is taken and what stays.
    template <typename Split>
    Range exchange(const Split& split) noexcept {
        std::uint64_t packed = packed_;
        for (;;) {
            const auto [taken, stays] = split(unpack(packed));
            if (taken.length() == 0 || packed_.compare_exchange_weak(packed, pack(stays))) {
                return taken;
            }
        }
    }

    std::atomic<std::uint64_t> packed_{0};
};

// One call.
class Job {
 public:
    Job(int count, int threads, int grain, const Make& make)
        : count_(count), grain_(grain), make_(make), parts_(static_cast<std::size_t>(threads)) {
        for (int i = 0; i < threads; ++i) {
            parts_[static_cast<std::size_t>(i)].set({bound(i), bound(i + 1)});
        }
    }

    // Works until nothing is left to be taken. Called once by each thread, by as many as there are parts.
    void help() noexcept {
        RangeWork work;
        Part& own = parts_[arrived_++];
        for (;;) {
            for (Part::Range range = own.take(grain_); range.length() > 0; range = own.take(grain_)) {
                finish(range, work);
            }
            const auto fullest = std::max_element(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) {
                return a.left().length() < b.left().length();
            });
            const bool is_begun = static_cast<std::size_t>(fullest - parts_.begin()) < arrived_;
            if (is_begun && fullest->left().length() < kWorthTaking * grain_) {
                return;  // its owner has done it by the time that another has begun
            }
            const Part::Range taken = fullest->take_half(grain_);
            if (taken.length() == 0) {
                return;
            }
            own.set(taken);
        }
    }

    // Waits for what other threads took. Afterwards the work is not called any more.
    void wait() {
        // They mostly end together, and going to sleep and being woken takes longer than the difference.
        const auto patience = std::chrono::steady_clock::now() + kPatience;
        while (done_ != count_ && std::chrono::steady_clock::now() < patience) {
        }
        std::unique_lock<std::mutex> lock(mutex_);
        all_done_.wait(lock, [this] { return done_ == count_; });
        if (error_) {
            std::rethrow_exception(error_);
        }
    }

 private:
    // Parts begin at multiples of the grain.
    [[nodiscard]] int bound(int part) const noexcept {
        const std::int64_t grains = (std::int64_t{count_} + grain_ - 1) / grain_;
        const std::int64_t begin = grains * part / static_cast<std::int64_t>(parts_.size()) * grain_;
        return static_cast<int>(std::min<std::int64_t>(begin, count_));
    }

    void finish(Part::Range range, RangeWork& work) noexcept {
        try {
            if (!work) {
                work = make_();
            }
            work(range.begin, range.end);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            error_ = error_ ? error_ : std::current_exception();
        }
        if ((done_ += range.length()) == count_) {
            const std::lock_guard<std::mutex> lock(mutex_);
            all_done_.notify_one();
        }
    }

    int count_;
    int grain_;
    const Make& make_;
    std::vector<Part> parts_;
    std::atomic<std::size_t> arrived_{0};
    std::atomic<int> done_{0};
    std::mutex mutex_;
    std::condition_variable all_done_;
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

void parallel_ranges(int count, int threads, int grain, const std::function<RangeWork()>& make) {
    if (count <= 0) {
        return;
    }
    const int parts = std::min(threads, (count - 1) / grain + 1);
    if (parts <= 1 || !workers().are_here()) {
        make()(0, count);
        return;
    }
    const auto job = std::make_shared<Job>(count, parts, grain, make);
    workers().call(job, static_cast<std::size_t>(parts) - 1);
    job->help();
    workers().call_off(job);
    job->wait();
}

}  // namespace holocron::detail
