#include "context_pool.hpp"

#include <limits>

namespace holocron::detail {

ContextPool::ContextPool(std::string backend, std::shared_ptr<Executable> executable)
    : backend_(std::move(backend)), executable_(std::move(executable)), limit_(executable_->context_limit()) {
    if (limit_ == 0) {
        limit_ = std::numeric_limits<std::size_t>::max();
    }
    idle_.push_back(executable_->create_context());  // what does not fit says so when the network is opened
    total_ = 1;
}

void ContextPool::check_open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    throw_if_not_open();
}

void ContextPool::throw_if_not_open() const {
    if (!lost_.empty()) {
        throw BackendError("the " + backend_ + " session is closed, since its device was lost (" + lost_ +
                           "): restart the program");
    }
    if (closed_) {
        throw BackendError("the " + backend_ + " session is closed: load the model again");
    }
}

std::unique_ptr<Context> ContextPool::acquire() {
    for (;;) {
        std::shared_ptr<Executable> executable;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [this] { return !idle_.empty() || total_ < limit_ || !is_open(); });
            throw_if_not_open();
            if (!idle_.empty()) {
                auto context = std::move(idle_.back());
                idle_.pop_back();
                return context;
            }
            idle_.reserve(total_ + 1);  // so that giving back needs no memory
            ++total_;
            executable = executable_;
        }
        if (auto context = make_or_wait(executable)) {
            return context;
        }
    }
}

/// A new context, which is counted already; null if there is no memory for it, but others to wait for.
std::unique_ptr<Context> ContextPool::make_or_wait(const std::shared_ptr<Executable>& executable) {
    try {
        return executable->create_context();
    } catch (const OutOfDeviceMemory&) {
        const std::lock_guard<std::mutex> lock(mutex_);
        --total_;
        changed_.notify_all();
        if (total_ == 0 || !is_open()) {
            throw;
        }
        limit_ = total_;
        return nullptr;
    } catch (const DeviceLost& e) {
        give_back(nullptr, false);
        note_lost(e.reason());
        throw;
    } catch (...) {
        give_back(nullptr, false);
        throw;
    }
}

void ContextPool::give_back(std::unique_ptr<Context> context, bool keep) noexcept {
    std::shared_ptr<Executable> executable;  // released after the lock, and after the context
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (keep && is_open()) {
            idle_.push_back(std::move(context));
            changed_.notify_one();
            return;
        }
    }
    context.reset();  // may wait for a device
    const std::lock_guard<std::mutex> lock(mutex_);
    --total_;
    if (!is_open() && total_ == 0) {
        executable.swap(executable_);
    }
    changed_.notify_all();
}

void ContextPool::note_lost(const std::string& reason) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (lost_.empty()) {
            lost_ = reason.empty() ? "no reason was given" : reason;
        }
    }
    close();
}

void ContextPool::close() {
    std::shared_ptr<Executable> executable;
    std::vector<std::unique_ptr<Context>> idle;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        closed_ = true;
        idle.swap(idle_);
        total_ -= idle.size();
        if (total_ == 0) {
            executable.swap(executable_);
        }
        changed_.notify_all();
    }
}

}  // namespace holocron::detail
