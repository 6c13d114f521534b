// One pool of threads for all kernels.
//
// A job is a number of chunks; whoever is free takes the next one, the caller included, and the caller
// returns when every chunk is done. It never waits for a thread that has taken nothing, so a worker that
// the operating system took away costs at most the chunk it holds. Which thread computes a chunk, and how
// many threads there are, never changes a result: chunks write disjoint outputs and share no sums.
//
// A call from several threads at once, from inside a chunk, or in the child of a fork is allowed: the
// first keeps the workers, the others compute alone; a child starts its own workers at its first job.
#pragma once

#include <cstdint>

namespace hearth {

using ChunkFunction = void (*)(const void* context, std::int64_t chunk);

// Calls function(context, chunk) for each chunk in [0, num_chunks); the function must not throw.
void run_chunks(std::int64_t num_chunks, ChunkFunction function, const void* context);

// The same for a callable.
template <typename Body>
void for_each_chunk(std::int64_t num_chunks, const Body& body) {
    run_chunks(
        num_chunks, [](const void* context, std::int64_t chunk) { (*static_cast<const Body*>(context))(chunk); },
        &body);
}

// Threads that compute, the caller included; at first what the process may run on at once.
int num_threads();

// Waits for a running job, ends the workers and starts count - 1 new ones at the next job. 1 <= count <= 1024.
void set_num_threads(int count);

}  // namespace hearth
