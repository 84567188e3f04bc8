#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <thread>

#include "fake_models.hpp"

using namespace holocron;
using namespace holocron::tests;

TEST_CASE("a closed model says so, and closing twice is allowed") {
    const auto network = fake_network();
    const Model model = make_model(network);
    model.close();
    model.close();
    CHECK(network->alive == 0);
    const Picture red(255, 0, 0);
    const std::string expected = "the fake session is closed: load the model again";
    CHECK(error_of<BackendError>([&] { static_cast<void>(model.classify(red.frame())); }) == expected);
    const auto feeds = model.feeds({red.frame()});
    CHECK(error_of<BackendError>([&] {
              static_cast<void>(model.run({{"input", feeds.at("input").view()}}));
          }) == expected);
}

TEST_CASE("threads run while another closes: each call is an answer or a clean error") {
    for (int round = 0; round < 20; ++round) {
        const auto network = fake_network();
        const Model model = make_model(network);
        const Picture red(255, 0, 0);
        std::atomic<int> answers{0};
        std::vector<std::thread> threads;
        for (int t = 0; t < 4; ++t) {
            threads.emplace_back([&] {
                try {
                    for (;;) {
                        if (model.classify(red.frame()).index() == 0) {
                            ++answers;
                        }
                    }
                } catch (const BackendError&) {
                }
            });
        }
        while (answers < 20) {
            std::this_thread::yield();
        }
        model.close();
        for (auto& thread : threads) {
            thread.join();
        }
        CHECK(network->alive == 0);
    }
}

TEST_CASE("contexts are as many as there may be, and others wait") {
    const auto network = fake_network();
    network->limit = 2;
    const Model model = make_model(network);
    const Picture red(255, 0, 0);
    std::vector<std::thread> threads;
    std::atomic<int> right{0};
    for (int t = 0; t < 6; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 50; ++i) {
                right += model.classify(red.frame()).index() == 0 ? 1 : 0;
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(right == 300);
    CHECK(network->created <= 2);
}

TEST_CASE("a call without memory for a context of its own takes another's") {
    const auto network = fake_network();
    network->before_context = [](int number) {
        if (number > 0) {
            throw detail::OutOfDeviceMemory("no memory");
        }
    };
    const Model model = make_model(network);
    const Picture red(255, 0, 0);
    std::vector<std::future<int>> results;
    for (int t = 0; t < 4; ++t) {
        results.push_back(std::async(std::launch::async, [&] {
            int right = 0;
            for (int i = 0; i < 20; ++i) {
                right += model.classify(red.frame()).index() == 0 ? 1 : 0;
            }
            return right;
        }));
    }
    for (auto& result : results) {
        CHECK(result.get() == 20);
    }
}

TEST_CASE("what fails is thrown away, a lost device closes the model") {
    int calls = 0;
    const auto network =
        std::make_shared<FakeExecutable>(image_input(), logits_output(), [&calls](const std::vector<Tensor>& inputs) {
            if (++calls == 1) {
                throw BackendError("it failed");
            }
            if (calls == 3) {
                throw detail::DeviceLost("it failed for good", "unplugged");
            }
            return mean_colour(inputs);
        });
    const Model model = make_model(network);
    const Picture red(255, 0, 0);
    CHECK(error_of<BackendError>([&] { static_cast<void>(model.classify(red.frame())); }) == "it failed");
    CHECK(network->alive == 0);
    CHECK(model.classify(red.frame()).index() == 0);
    CHECK(error_of<BackendError>([&] { static_cast<void>(model.classify(red.frame())); }) == "it failed for good");
    CHECK(error_of<BackendError>([&] { static_cast<void>(model.classify(red.frame())); }) ==
          "the fake session is closed, since its device was lost (unplugged): restart the program");
    CHECK(network->alive == 0);
}
