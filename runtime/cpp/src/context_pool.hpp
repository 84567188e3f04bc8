/// \file
/// The threads that run one network share its contexts.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "backends/backend.hpp"

namespace holocron::detail {

/// The contexts of one network: made when they are needed, waited for when there are as many as there may be.
class ContextPool {
 public:
    /// \param backend its name, for errors
    /// \param executable what the contexts run; released with the last of them once the pool is closed
    /// \throws BackendError if there is not enough memory for one context
    ContextPool(std::string backend, std::shared_ptr<Executable> executable);
    ContextPool(const ContextPool&) = delete;
    ContextPool& operator=(const ContextPool&) = delete;
    ~ContextPool() { close(); }

    /// Call with a context that is the calling thread's alone.
    ///
    /// A context is destroyed if what was done with it failed, but for errors that are about what it was given.
    ///
    /// \throws BackendError if the pool is closed, or the device was lost; and what `use` throws
    template <typename Use>
    auto with_context(Use&& use) {
        Lease lease(*this, acquire());
        try {
            if constexpr (std::is_void_v<decltype(use(*lease.context))>) {
                use(*lease.context);
                lease.keep = true;
            } else {
                auto result = use(*lease.context);
                lease.keep = true;
                return result;
            }
        } catch (const ImageError&) {
            lease.keep = true;
            throw;
        } catch (const InputError&) {
            lease.keep = true;
            throw;
        } catch (const BundleError&) {
            lease.keep = true;
            throw;
        } catch (const DeviceLost& e) {
            note_lost(e.reason());
            throw;
        }
    }

    /// \throws BackendError if it was closed, or its device was lost
    void check_open();

    /// Release what is idle now, and what is running as soon as it has run.
    void close();

 private:
    struct Lease {
        Lease(ContextPool& owner, std::unique_ptr<Context> leased) : pool(owner), context(std::move(leased)) {}
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        ~Lease() { pool.give_back(std::move(context), keep); }

        ContextPool& pool;
        std::unique_ptr<Context> context;
        bool keep = false;
    };

    std::unique_ptr<Context> acquire();
    std::unique_ptr<Context> make_or_wait(const std::shared_ptr<Executable>& executable);
    void give_back(std::unique_ptr<Context> context, bool keep) noexcept;
    void note_lost(const std::string& reason);
    void throw_if_not_open() const;
    [[nodiscard]] bool is_open() const noexcept { return !closed_ && lost_.empty(); }

    const std::string backend_;
    std::mutex mutex_;  // of all below
    std::condition_variable changed_;
    std::shared_ptr<Executable> executable_;
    std::vector<std::unique_ptr<Context>> idle_;
    std::size_t total_ = 0;
    std::size_t limit_;
    bool closed_ = false;
    std::string lost_;  // why the device is lost; empty if it is not
};

}  // namespace holocron::detail
