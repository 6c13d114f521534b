#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace hearth {
namespace {

// How long an idle worker looks for the next job before it sleeps: longer than the pause between two
// kernels of a step, shorter than anyone else on the machine would notice.
constexpr std::chrono::microseconds kSpin{60};

inline void pause_briefly() {
#if defined(HEARTH_X86)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// Rounding to nearest and denormals kept while kernels run, whatever the thread was set to before (a new
// thread inherits it, so a sum would otherwise depend on who computes it).
class StandardArithmetic {
public:
#if defined(HEARTH_X86)
    StandardArithmetic() : outer_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
    ~StandardArithmetic() { __builtin_ia32_ldmxcsr(outer_); }

private:
    unsigned outer_;
#else
    StandardArithmetic() {}
#endif
};

class Pool {
public:
    explicit Pool(int num_threads) {
        try {
            for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
            // The system has no more threads for us: fewer workers give the same results.
        }
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(sleep_mutex_);
            is_closing_.store(true);
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    void run(std::int64_t num_chunks, ChunkFunction function, const void* context) {
        function_.store(function, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        num_chunks_.store(num_chunks, std::memory_order_relaxed);
        num_done_.store(0, std::memory_order_relaxed);
        const std::uint64_t job = (state_.load(std::memory_order_relaxed) >> kCountBits) + 1;
        // Sequentially consistent with the sleepers' count: either we see a sleeper, or it sees the job.
        state_.store((job << kCountBits) | std::uint64_t(num_chunks), std::memory_order_seq_cst);
        if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
            std::lock_guard<std::mutex> lock(sleep_mutex_);
            wake_.notify_all();
        }
        while (take_one()) {
        }
        while (num_done_.load(std::memory_order_acquire) != num_chunks) wait_a_little();
        spins_ = 0;
    }

    static constexpr std::int64_t kMaxChunks = (std::int64_t(1) << 24) - 1;

private:
    static constexpr int kCountBits = 24;

    // Takes and computes one chunk of the present job; false when none is left.
    //
    // The upper bits of state_ number the job, the lower ones count the chunks nobody took. A successful
    // exchange proves that state_ did not change since it was read, hence that function_ and context_,
    // read between, belong to this job: they are only written when the last job has no chunk left.
    bool take_one() {
        std::uint64_t state = state_.load(std::memory_order_acquire);
        for (;;) {
            const std::int64_t left = std::int64_t(state & kMaxChunks);
            if (left == 0) return false;
            const ChunkFunction function = function_.load(std::memory_order_relaxed);
            const void* const context = context_.load(std::memory_order_relaxed);
            const std::int64_t num_chunks = num_chunks_.load(std::memory_order_relaxed);
            if (state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel,
                                             std::memory_order_acquire)) {
                function(context, num_chunks - left);
                num_done_.fetch_add(1, std::memory_order_release);
                return true;
            }
        }
    }

    bool has_chunk() const { return (state_.load(std::memory_order_seq_cst) & kMaxChunks) != 0; }

    // The caller waits for chunks that others hold; it gives its core away once that takes long, because
    // the thread it waits for may need this very core.
    void wait_a_little() {
        if (++spins_ < 2000) {
            pause_briefly();
        } else {
            std::this_thread::yield();
        }
    }

    void work() {
        const StandardArithmetic arithmetic;
        auto idle_since = std::chrono::steady_clock::now();
        while (!is_closing_.load(std::memory_order_relaxed)) {
            if (take_one()) {
                while (take_one()) {
                }
                idle_since = std::chrono::steady_clock::now();
                continue;
            }
            for (int i = 0; i < 32 && !has_chunk(); ++i) pause_briefly();
            if (std::chrono::steady_clock::now() - idle_since < kSpin) continue;
            std::unique_lock<std::mutex> lock(sleep_mutex_);
            num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [this] { return has_chunk() || is_closing_.load(); });
            num_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
            idle_since = std::chrono::steady_clock::now();
        }
    }

    alignas(64) std::atomic<std::uint64_t> state_{0};
    std::atomic<ChunkFunction> function_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<std::int64_t> num_chunks_{0};
    alignas(64) std::atomic<std::int64_t> num_done_{0};
    alignas(64) std::atomic<int> num_sleeping_{0};
    std::atomic<bool> is_closing_{false};
    int spins_ = 0;
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

// What one process has. A forked child gets a new one and leaves the parent's alone: its threads do not
// exist there and its locks may be held by nobody.
struct Home {
    std::atomic<bool> is_busy{false};
    Pool* pool = nullptr;
    std::atomic<int> num_threads{std::max(1, int(std::thread::hardware_concurrency()))};
};

std::atomic<Home*> g_home{nullptr};

void forget_after_fork() {
    Home* const old = g_home.load(std::memory_order_relaxed);
    if (old == nullptr) return;
    Home* const fresh = new Home;
    fresh->num_threads.store(old->num_threads.load());
    g_home.store(fresh, std::memory_order_relaxed);
}

Home& home() {
    static const bool is_made = [] {
        g_home.store(new Home);
        pthread_atfork(nullptr, nullptr, forget_after_fork);
        return true;
    }();
    (void)is_made;
    return *g_home.load(std::memory_order_relaxed);
}

}  // namespace

void run_chunks(std::int64_t num_chunks, ChunkFunction function, const void* context) {
    const StandardArithmetic arithmetic;
    Home& here = home();
    if (num_chunks > 1 && num_chunks <= Pool::kMaxChunks && here.num_threads.load(std::memory_order_relaxed) > 1) {
        if (!here.is_busy.exchange(true, std::memory_order_acquire)) {
            if (here.pool == nullptr) here.pool = new Pool(here.num_threads.load());
            here.pool->run(num_chunks, function, context);
            here.is_busy.store(false, std::memory_order_release);
            return;
        }
    }
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) function(context, chunk);
}

int num_threads() { return home().num_threads.load(); }

void set_num_threads(int count) {
    Home& here = home();
    while (here.is_busy.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
    if (count != here.num_threads.load()) {
        delete here.pool;
        here.pool = nullptr;
        here.num_threads.store(count);
    }
    here.is_busy.store(false, std::memory_order_release);
}

}  // namespace hearth
