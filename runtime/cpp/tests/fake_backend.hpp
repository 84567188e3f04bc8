/// \file
/// A backend that computes what a test says.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"

namespace holocron::tests {

/// A network whose outputs are computed by a function of its inputs.
class FakeExecutable final : public detail::Executable {
 public:
    using Compute = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

    FakeExecutable(std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs, Compute compute)
        : inputs_(std::move(inputs)), outputs_(std::move(outputs)), compute_(std::move(compute)) {}

    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept override { return inputs_; }
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept override { return outputs_; }
    [[nodiscard]] const std::string& device() const noexcept override { return device_; }
    [[nodiscard]] std::size_t context_limit() const noexcept override { return limit; }
    [[nodiscard]] std::unique_ptr<detail::Context> create_context() override;

    std::size_t limit = 0;
    std::function<void(int)> before_context;  // given the number of the context, may throw
    std::atomic<int> created{0};
    std::atomic<int> alive{0};

 private:
    friend class FakeContext;
    std::vector<TensorSpec> inputs_;
    std::vector<TensorSpec> outputs_;
    std::string device_ = "fake";
    Compute compute_;
};

class FakeContext final : public detail::Context {
 public:
    explicit FakeContext(FakeExecutable& network) : network_(network), given_(network.inputs_.size()) {
        ++network_.alive;
    }
    ~FakeContext() override { --network_.alive; }

    MutableTensorView stage(std::size_t index, const Shape& shape) override {
        given_[index] = Tensor(network_.inputs_[index].type, shape);
        return {given_[index].data(), network_.inputs_[index].type, shape, Memory::Host};
    }
    void bind(std::size_t index, const TensorView& tensor) override { given_[index] = Tensor(tensor); }
    std::vector<TensorView> run() override {
        results_ = network_.compute_(given_);
        std::vector<TensorView> views;
        for (const auto& tensor : results_) {
            views.push_back(tensor.view());
        }
        return views;
    }

 private:
    FakeExecutable& network_;
    std::vector<Tensor> given_;
    std::vector<Tensor> results_;
};

inline std::unique_ptr<detail::Context> FakeExecutable::create_context() {
    const int number = created.fetch_add(1);
    if (before_context) {
        before_context(number);
    }
    return std::make_unique<FakeContext>(*this);
}

}  // namespace holocron::tests
